"""Names and paths that lead elsewhere, where they are believed."""

from __future__ import annotations

from pathlib import Path

_LOOK_LIKE_SLASH = "／⁄∕⧸╱⟋﹨＼⧵∖"
_LOOK_LIKE_DOT = "．․｡。‥…"
_DEVICES = ("CON", "con.png", "NUL", "nul.txt", "AUX", "COM1", "LPT9.safetensors", "CONIN$", "COM¹")


def path_corpus(outside: Path) -> list[str]:
    """Ways to name what lies outside, and names that systems take for something else."""
    target, name = outside.as_posix(), outside.name
    ups = ["../" * depth + f"{name}/secret" for depth in range(1, 11)]
    return [
        *(f"{path}{suffix}" for path in (target + "/secret", *ups) for suffix in (".png", ".txt", ".safetensors")),
        *(
            "..",
            ".",
            "/",
            "//",
            "",
            " ",
            "~",
            "~root",
            "...",
            "....",
            "..\\",
            ".\\..",
            "/..",
            "..;/",
            "..%00",
            "..\x00",
        ),
        *(f"3_cat/{up}.png" for up in ups[:6]),
        *(f"samples/{up}.png" for up in ups[:6]),
        *(f"link/{file}" for file in ("secret.png", "secret.txt", "secret.safetensors")),
        *("../link/secret.png", "../../../../link/secret.png", "projects/../link/secret.png", "jobs/../link"),
        *(target, target + "/", target.replace("/", "\\"), f"file://{target}/secret.png", f"\\\\?\\{target}"),
        *(
            "C:\\Windows\\win.ini",
            "C:/Windows/win.ini",
            "C:secret.png",
            "c:",
            "\\\\server\\share\\x.png",
            "//server/share",
        ),
        *(
            "\\\\.\\pipe\\x",
            "\\\\?\\UNC\\server\\share",
            "a.png:hidden",
            "a.png::$DATA",
            "..\\..\\..\\outside\\secret.png",
        ),
        *(
            f"%2e%2e/%2e%2e/{name}",
            f"%2e%2e%2f%2e%2e%2f{name}%2fsecret.png",
            f"%252e%252e%252f{name}",
            f"..%c0%af{name}",
        ),
        *(f"..{slash}..{slash}..{slash}{name}{slash}secret.png" for slash in _LOOK_LIKE_SLASH),
        *(f"{dot}{dot}/{dot}{dot}/{name}/secret.png" for dot in _LOOK_LIKE_DOT),
        *("a.png.", "a.png ", "a.png\u200b", "a\u202egnp.exe", "3_cat./a.png", "3_cat /a.png", "a\npng", "\x1b[2J"),
        *_DEVICES,
        *("x" * 255, "x" * 300, "猫" * 200, "x/" * 2000, "../" * 2000, "a" * 50_000),
        *("version.json", "../version.json", "job.json", "../job.json", "events.jsonl", "worker.log", "state/x.pt"),
        *("$HOME", "${HOME}", "$(id)", "`id`", "%USERPROFILE%", "| id", "; id", "-rf", "--help", "*", "?", "[a-z]"),
    ]
