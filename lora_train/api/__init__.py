"""The HTTP API, `/train-tools/v1/…`: everything that the page can do, for its script and for other programs."""

from lora_train.api.gate import TOKEN as TOKEN
from lora_train.api.gate import Gate as Gate
from lora_train.api.gate import PageGate as PageGate
from lora_train.api.server import add_routes as add_routes
