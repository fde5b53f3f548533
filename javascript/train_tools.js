// The live part of the Train Tools page: asks the server what is new, redraws what changed, does what buttons say.
// Works in WebUIs (gradio 3.41 and 4) and on the standalone page. Without it *Refresh* shows what is drawn quickly, and
// nothing of what is in accordions.
"use strict";
(() => {
    if (window.trainToolsRuns) return;
    window.trainToolsRuns = true;

    // Every word of this script, for the translations in localizations/.
    const WORDS = {
        back: "It is back.",
        cancel: "Cancel",
        caption: "Caption",
        cfg: "CFG scale",
        changing: "In changing order:",
        leftOut: "Left out, as nearly all captions have it:",
        cutOff: "Cut off:",
        captionSaved: "The caption is saved.",
        close: "Close",
        columns: "Columns",
        compare: "Compare pictures",
        comparedWith: "Compared with:",
        copied: "Copied. Paste it into a prompt.",
        copyByHand: "Copy this into a prompt:",
        copyPrompt: "Copy prompt",
        deleted: "Deleted:",
        down: "Down",
        gridHelp: "Point at a picture to compare it with the pinned one, or that of weight 0, or the first of its row.",
        gridKeys: "Keys: arrows move, Enter enlarges, C shows the other picture, P pins.",
        left: "Left",
        loginEnded: "The server was restarted, or your login has ended: reload the page.",
        lost: "The connection to the server is lost. Reload the page when it is back.",
        next: "Next",
        picture: "Picture",
        pin: "Pin",
        pinned: "Pinned",
        previous: "Previous",
        refresh: "Refresh",
        remove: "Remove",
        replace: "Replace",
        right: "Right",
        rows: "Rows",
        sampler: "Sampling method",
        save: "Save",
        seed: "Seed",
        sent: "Put into the txt2img prompt.",
        steps: "Sampling steps",
        tokens: "tokens",
        trainedAs: "Trained as:",
        undo: "Undo",
        up: "Up",
        weight: "Lora multiplier",
        waits: "The caption can be edited after Update Dataset.",
        wrong: "Something went wrong. The log of the server has more.",
    };
    const VISIBLE_MS = 1000;
    const HIDDEN_MS = 5000;
    const LONGEST_MS = 10000;
    const REQUEST_MS = 15000;
    const TASK_MS = 500;
    const TASK_TRIES = 10;
    const LOOK_MS = 200;
    const PRESS_MS = 5000;
    const CLICK_MS = 150;
    const MESSAGE_MS = 8000;

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const page = () => find("#train_tools_page");
    const isVisible = () => !document.hidden && Boolean(page()?.getClientRects().length);

    // --- talking to the server ---

    function connection() {
        const data = find("#train_tools_app[data-base], #train_tools_app [data-base]")?.dataset;
        return { base: data?.base ?? "./train-tools/v1/", token: data?.token ?? "", localize: data?.localize === "1" };
    }

    function shown() {
        const data = find("#train_tools_shown[data-project], #train_tools_shown [data-project]")?.dataset;
        return { project: data?.project ?? "", version: data?.version ?? "" };
    }

    // What the caption editor's filter shows; its panel writes it there.
    function captionFilter() {
        const { filter = "", mode = "", order = "" } = find("#train_tools_captions_state")?.dataset ?? {};
        return { filter, mode, order };
    }

    const isShown = ({ project, version }) => project === shown().project && version === shown().version;

    async function request(route, options = {}) {
        const { base, token } = connection();
        const headers = { ...(token && { "X-Train-Tools": token }), ...options.headers };
        return fetch(base + route, { ...options, headers, signal: AbortSignal.timeout?.(REQUEST_MS) });
    }

    const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));

    // The answer of what goes on at the server. A question that is lost is asked again.
    async function outcomeOf(task) {
        const query = new URLSearchParams({ task });
        for (let tries = 1; ; tries += 1) {
            await pause(TASK_MS);
            try {
                return await request(`tasks/answer?${query}`);
            } catch (error) {
                if (tries === TASK_TRIES) throw error;
            }
        }
    }

    // The answer, or an Error with `lines` to show. What takes long goes on at the server and is asked for again.
    async function post(route, body) {
        let response;
        try {
            response = await request(route, {
                method: "POST",
                headers: { "Content-Type": "application/json", Prefer: "respond-async" },
                body: JSON.stringify(body),
            });
            while (response.status === 202) {
                const { task } = await response.json();
                poll(); // shows how far it is
                response = await outcomeOf(task);
            }
        } catch {
            throw Object.assign(new Error("lost"), { lines: [{ words: WORDS.lost }] });
        }
        const answer = await response.json().catch(() => null);
        if (response.ok) return answer ?? {};
        const lines = sentences([...(answer?.problems ?? [answer?.message]), answer?.hint]);
        if (!lines.length) lines.push({ words: WORDS.wrong });
        throw Object.assign(new Error(route), {
            lines: response.status === 401 ? [{ words: WORDS.loginEnded }] : lines,
        });
    }

    // --- asking what is new ---

    const params = { train: "", smoothing: "", pictures: "", gallery: "", cards: "", grids: "", compare: "" };
    const marks = new WeakMap(); // live element -> mark of what it shows
    let lastShown = "";
    let timer = 0;
    let isAsking = false;
    let askAgain = false;
    let failures = 0;
    let trouble = "";
    let lorasRevision = 0;

    async function poll() {
        clearTimeout(timer);
        if (isAsking) {
            askAgain = true;
            return;
        }
        isAsking = true;
        askAgain = false;
        try {
            if (page()) await ask();
        } catch {
            failures += 1;
            if (failures === 3) showTrouble("lost");
        }
        isAsking = false;
        // A1111 ends its start when it is asked anything a moment too early, so a lost WebUI is left alone.
        if (failures >= 3 && !connection().localize) return;
        const next = (isVisible() ? VISIBLE_MS : HIDDEN_MS) * 2 ** Math.min(failures, 5);
        timer = setTimeout(poll, askAgain ? 0 : Math.min(next, LONGEST_MS));
    }

    async function ask() {
        const selection = shown();
        const filter = captionFilter();
        const wanted = JSON.stringify(selection);
        if (wanted !== lastShown) params.train = params.compare = params.gallery = params.cards = params.grids = "";
        lastShown = wanted;
        // What is in a closed accordion is not asked for; of a hidden page only what nobody sees.
        const asked = liveElements().filter((element) => element.parentElement.getClientRects().length);
        const seen = asked.map((element) => marks.get(element)).filter(Boolean).join(",");
        const parts = asked.map((element) => element.dataset.live).join(",") || "queue";
        const token = connection().token;
        const query = new URLSearchParams({ ...selection, ...params, ...filter, parts, seen, token });
        const response = await request(`live?${query}`);
        if (response.status === 404) return; // the routes come a moment after the page
        if (response.status === 401) {
            failures = 3;
            showTrouble("loginEnded");
            return;
        }
        if (!response.ok) throw new Error(`live: ${response.status}`);
        const answer = await response.json();
        failures = 0;
        showTrouble("");
        await released();
        if (JSON.stringify([shown(), captionFilter()]) !== JSON.stringify([selection, filter])) {
            askAgain = true;
            return;
        }
        for (const element of liveElements()) {
            const name = element.dataset.live;
            if (!(name in answer.fragments)) continue; // perhaps drawn anew by gradio meanwhile: its mark stays unknown
            redraw(element, answer.fragments[name]);
            marks.set(element, answer.marks[name]);
        }
        if (answer.fragments.grids !== undefined) grids.refresh();
        tellChosen();
        takeEnded();
        refreshLoras(answer.loras_revision);
        nameControls();
    }

    // Another version is shown: gradio has left empty what is in accordions, and what takes long to draw.
    setInterval(() => {
        if (JSON.stringify(shown()) !== lastShown && isVisible()) poll();
    }, LOOK_MS);

    // What gradio's buttons began and did not wait for: when it is over, its outcome is fetched by another button.
    let takenTask = "";

    function takeEnded() {
        const task = find("#train_tools_begun[data-task], #train_tools_begun [data-task]")?.dataset.task;
        if (!task || task === takenTask || !find(`[data-live="tasks"] [data-ended="${CSS.escape(task)}"]`)) return;
        takenTask = task;
        find("#train_tools_take")?.click();
    }

    function liveElements() {
        return [...(page()?.querySelectorAll(".train-tools-live") ?? [])];
    }

    // WebUIs translate what is added to the page, but no aria-label, and no title that comes later.
    function inHostsLanguage(text) {
        return (Object.hasOwn(window.localization ?? {}, text) && window.localization[text]) || text;
    }

    // Names for those who can't see the signs on buttons; gradio's buttons come without.
    function nameControls() {
        for (const button of page().querySelectorAll("button.train-tools-tool:not([aria-label])")) {
            button.setAttribute("aria-label", WORDS.refresh);
            button.title = inHostsLanguage(WORDS.refresh);
        }
        // Gradio 6 names its uploads otherwise than they read, so that who speaks what he sees can't call it.
        for (const button of page().querySelectorAll('[id$="_upload"] button[aria-label]:has(input[type="file"])')) {
            button.removeAttribute("aria-label");
        }
        for (const element of page().querySelectorAll("[aria-label]")) {
            const name = element.getAttribute("aria-label");
            if (inHostsLanguage(name) !== name) element.setAttribute("aria-label", inHostsLanguage(name));
        }
    }

    function showTrouble(which) {
        if (which === trouble) return;
        trouble = which;
        if (which) say([{ words: WORDS[which] }], "error");
        else say([]);
    }

    // The WebUI shows new LoRAs only after its own hidden buttons were pressed.
    function refreshLoras(revision) {
        if (revision > lorasRevision) {
            for (const tab of ["txt2img", "img2img"]) find(`#${tab}_lora_extra_refresh_internal`)?.click();
        }
        lorasRevision = revision;
    }

    // While a mouse button or finger is down no live part is redrawn: what is pressed would move away from under it, and
    // the press would count for nothing. Its click comes after the release, a finger's by a task of its own. Scroll
    // bars, menus and lists of the browser may keep the release to themselves, so that a press ends after a while.
    let heldUntil = 0; // as performance.now()
    const hold = (ms) => () => (heldUntil = performance.now() + ms);
    document.addEventListener("pointerdown", hold(PRESS_MS), true);
    for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, hold(CLICK_MS), true);

    async function released() {
        while (performance.now() < heldUntil) await pause(CLICK_MS);
    }

    // --- redrawing: elements stay what they are, so that focus, scroll, open details and clicks survive ---

    const sources = new WeakMap(); // text node -> its text before anybody translated it
    const attributeSources = new WeakMap();
    const TRANSLATED = ["title", "placeholder", "aria-label"];
    const openDetails = new Set();

    function redraw(element, html) {
        const template = document.createElement("template");
        template.innerHTML = html; // made by our own server, which escapes everything foreign
        prepare(template.content);
        const focused = document.activeElement?.dataset?.key;
        morph(element, template.content);
        for (const details of element.querySelectorAll("details[data-key]")) {
            details.open = openDetails.has(details.dataset.key);
        }
        if (focused && document.activeElement === document.body) {
            element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
        }
    }

    function prepare(fragment) {
        for (const time of fragment.querySelectorAll("time[datetime]")) {
            const options = { dateStyle: "medium", timeStyle: "short" };
            time.textContent = new Date(time.dateTime).toLocaleString(document.documentElement.lang || [], options);
        }
        if (!promptBox()) {
            for (const button of fragment.querySelectorAll("[data-send]")) button.textContent = WORDS.copyPrompt;
        }
        const texts = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) sources.set(texts.currentNode, texts.currentNode.data);
    }

    const keyOf = (node) => node?.dataset?.key ?? "";

    function morph(old, fresh) {
        const wantedKeys = new Set([...fresh.children].map(keyOf));
        const keyed = new Map();
        for (const child of [...old.children]) {
            if (!keyOf(child)) continue;
            if (wantedKeys.has(keyOf(child))) keyed.set(keyOf(child), child);
            else child.remove();
        }
        let next = old.firstChild;
        for (const wanted of [...fresh.childNodes]) {
            const key = keyOf(wanted);
            const kept = key ? keyed.get(key) : next && !keyOf(next) ? next : null;
            if (!kept || kept.nodeName !== wanted.nodeName) {
                old.insertBefore(wanted, next);
                continue;
            }
            if (kept === next) next = next.nextSibling;
            else old.insertBefore(kept, next);
            patch(kept, wanted);
        }
        while (next) {
            const after = next.nextSibling;
            next.remove();
            next = after;
        }
    }

    function patch(kept, wanted) {
        if (kept.nodeType !== Node.ELEMENT_NODE) {
            // A new node, not new text: hosts translate what is added, not what is changed.
            if ((sources.get(kept) ?? kept.data) !== wanted.data) kept.replaceWith(wanted);
            return;
        }
        const known = attributeSources.get(kept) ?? {};
        for (const { name, value } of wanted.attributes) {
            const current = TRANSLATED.includes(name) && name in known ? known[name] : kept.getAttribute(name);
            if (current !== value) kept.setAttribute(name, value);
            if (TRANSLATED.includes(name)) known[name] = value;
        }
        attributeSources.set(kept, known);
        for (const { name } of [...kept.attributes]) {
            if (!wanted.hasAttribute(name) && name !== "open" && name !== "disabled") kept.removeAttribute(name);
        }
        morph(kept, wanted);
    }

    // --- messages ---

    let messageTimer = 0;

    function create(tag, attributes = {}, ...children) {
        const element = document.createElement(tag);
        for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
        element.append(...children);
        return element;
    }

    // What the server says, a line for each sentence.
    function sentences(texts) {
        return texts.flatMap((text) => (text ?? "").split("\n")).filter(Boolean).map((sentence) => ({ sentence }));
    }

    // A line is {words} (ours, translated) or a {sentence} (translated unless values are in it), and/or a {value}
    // (never translated).
    function lineOf({ words, sentence, value }) {
        const line = create("p", { class: "train-tools-line" });
        if (words) line.append(create("span", {}, words), " ");
        if (sentence) line.append(create("span", { class: "train-tools-sentence" }, sentence));
        if (value !== undefined) line.append(create("span", { class: "train-tools-value" }, String(value)));
        return line;
    }

    function say(lines, kind = "info", undo = null) {
        const area = page()?.querySelector('[data-live="message"]');
        clearTimeout(messageTimer);
        if (!area) return;
        area.replaceChildren();
        if (!lines.length && !undo) return;
        const text = create("div", {}, ...lines.map(lineOf));
        if (undo) {
            const line = lineOf({ words: WORDS.deleted, value: undo.what });
            const body = JSON.stringify({ entry: undo.entry });
            const action = { "data-post": "trash/restore", "data-body": body, "data-done": WORDS.back };
            line.append(" ", create("button", { type: "button", class: "train-tools-button", ...action }, WORDS.undo));
            text.append(line);
        }
        const named = { "data-close": "", "aria-label": WORDS.close, title: WORDS.close };
        const close = create("button", { type: "button", class: "train-tools-close", ...named }, "×");
        area.append(create("div", { class: `train-tools-message train-tools-${kind}` }, close, text));
        if (kind === "info" && !undo) messageTimer = setTimeout(() => area.replaceChildren(), MESSAGE_MS);
    }

    function sayAnswer(answer, done = "") {
        if (answer?.entry) say([], "info", answer);
        else if (answer?.problems?.length) say(sentences(answer.problems), "error");
        else if (done) say([{ words: done, value: answer?.name }]);
    }

    // --- buttons ---

    async function press(button) {
        const { post: route, body, confirm, done, then } = button.dataset;
        if (confirm && !(await confirmed(confirm, button.textContent))) return;
        button.disabled = true;
        try {
            const answer = await post(route, JSON.parse(body || "{}"));
            sayAnswer(answer, done);
            if (then) document.getElementById(then)?.click();
            // A project or version came back: the lists are gradio's.
            if (route === "trash/restore" && !isShown(answer)) find("#train_tools_show_last")?.click();
        } catch (error) {
            say(error.lines ?? [{ words: WORDS.wrong }], "error");
        }
        button.disabled = false;
        poll();
    }

    function setParam(name, value) {
        params[name] = value;
        if (name === "train") params.cards = "";
        poll();
    }

    // The second click of a double click must not begin, create or delete once more.
    const ONCE = '#train_tools_page :is(button[id^="train_tools_"], [data-post]:not([data-post="queue/move"]))';
    document.addEventListener(
        "click",
        (event) => {
            if (event.detail > 1 && event.target.closest?.(ONCE)) event.stopImmediatePropagation();
        },
        true,
    );

    const BEGINS_PREVIEWS =
        '#train_tools_preview_generate_all, [data-post="grids/train"], [data-post="grids/lora"], [data-post="sweeps/grid"]';
    document.addEventListener("click", (event) => {
        const target = event.target.closest?.("button");
        if (target?.id === "train_tools_train_begin") params.train = ""; // the new one is shown
        if (target?.matches(BEGINS_PREVIEWS)) params.grids = "";
        if (!target?.closest(".train-tools-live")) return;
        const data = target.dataset;
        if (data.post) press(target);
        else if (data.param) setParam(data.param, data.value);
        else if (data.send !== undefined) send(data.send);
        else if (data.open !== undefined) editor.open(target);
        else if (data.grid !== undefined) grids.open(target);
        else if (data.tag !== undefined) toggleTag(data.tag);
        else if (data.close !== undefined) target.closest("[data-live]").replaceChildren();
    });

    document.addEventListener("change", (event) => {
        const target = event.target;
        if (target.matches?.(".train-tools-live select[data-param]")) setParam(target.dataset.param, target.value);
        if (target.matches?.(".train-tools-live [data-choose]")) tellChosen();
    });

    // --- the caption editor's panel, whose fields are gradio's ---

    function typeInto(id, text) {
        const field = find(`#${id} textarea, #${id} input`);
        if (!field || field.value === text) return;
        field.value = text;
        field.dispatchEvent(new Event("input", { bubbles: true }));
        field.dispatchEvent(new Event("blur")); // gradio 6 takes the other one for a key that was pressed
    }

    // A click on a tag filters by it; another click takes it out of the filter.
    function toggleTag(tag) {
        const id = "train_tools_captions_filter";
        const term = /^[-"/*]/.test(tag) ? `"${tag}"` : tag;
        const current = find(`#${id} textarea, #${id} input`)?.value ?? "";
        const terms = current.split(",").map((text) => text.trim()).filter(Boolean);
        const rest = terms.filter((text) => text.toLowerCase() !== term.toLowerCase());
        typeInto(id, (rest.length < terms.length ? rest : [...terms, term]).join(", "));
    }

    function tellChosen() {
        const ticked = page()?.querySelectorAll('[data-live="captions"] [data-choose]:checked') ?? [];
        typeInto("train_tools_captions_chosen", JSON.stringify([...ticked].map((box) => box.dataset.choose)));
    }

    // By a hand: gradio closes them too, when it draws a part anew. The click comes before they open or close.
    document.addEventListener("click", (event) => {
        const details = event.target.closest?.("summary")?.parentElement;
        const key = keyOf(details);
        if (!key) return;
        if (details.open) openDetails.delete(key);
        else openDetails.add(key);
    });

    // --- a prompt for a picture ---

    const promptBox = () => find("#txt2img_prompt textarea");

    function send(prompt) {
        const box = promptBox();
        if (!box) {
            copy(prompt);
            return;
        }
        const before = box.value.replace(/[,\s]+$/, "");
        if (!before.includes(prompt)) box.value = before ? `${before}, ${prompt}` : prompt;
        if (typeof updateInput === "function") updateInput(box);
        else box.dispatchEvent(new Event("input", { bubbles: true }));
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
        say([{ words: WORDS.sent, value: prompt }]);
    }

    async function copy(text) {
        try {
            await navigator.clipboard.writeText(text);
            say([{ words: WORDS.copied, value: text }]);
        } catch {
            // Without https, or where the browser forbids it.
            say([{ words: WORDS.copyByHand, value: text }], "info", null);
            clearTimeout(messageTimer);
            const value = page()?.querySelector('[data-live="message"] .train-tools-value');
            if (value) window.getSelection()?.selectAllChildren(value);
        }
    }

    // --- dialogs ---

    function dialog(id, ...children) {
        const element = create("dialog", { id, class: "train-tools-dialog" }, ...children);
        page().append(element);
        element.addEventListener("keydown", (event) => event.stopPropagation()); // hosts have shortcuts of their own
        return element;
    }

    const dialogButton = (text, action) =>
        create("button", { type: "button", class: "train-tools-button", "data-action": action }, text);

    function confirmed(question, answer) {
        const text = create("p", { class: "train-tools-line", id: "train_tools_confirm_text" }, question);
        const buttons = [dialogButton(WORDS.cancel, "cancel"), dialogButton(answer, "yes")];
        buttons[1].classList.add("train-tools-danger");
        const row = create("div", { class: "train-tools-actions" }, ...buttons);
        const element = dialog("train_tools_confirm", text, row);
        element.setAttribute("aria-labelledby", text.id);
        return new Promise((resolve) => {
            buttons[0].addEventListener("click", () => element.close("cancel"));
            buttons[1].addEventListener("click", () => element.close("yes"));
            element.addEventListener("close", () => {
                element.remove();
                resolve(element.returnValue === "yes");
            });
            element.showModal();
        });
    }

    const base64 = (file) =>
        new Promise((resolve, reject) => {
            const reader = new FileReader();
            reader.addEventListener("load", () => resolve(reader.result.split(",", 2)[1] ?? ""));
            reader.addEventListener("error", () => reject(reader.error));
            reader.readAsDataURL(file);
        });

    // One picture of the dataset, big, with its caption.
    const editor = {
        element: null,
        opener: null,
        version: null,
        refused: null, // a caption that could not be saved

        build() {
            this.title = create("h3", { id: "train_tools_editor_title", class: "train-tools-value" });
            this.image = create("img", { class: "train-tools-big", alt: "" });
            this.caption = create("textarea", { id: "train_tools_editor_caption", rows: "3" });
            this.status = create("p", { class: "train-tools-line train-tools-quiet", role: "status" });
            this.trained = create("div", { class: "train-tools-trained" });
            this.label = create("label", { for: this.caption.id }, WORDS.caption);
            this.file = create("input", { type: "file", accept: "image/*", hidden: "", "aria-label": WORDS.replace });
            this.file.addEventListener("change", () => this.replace());
            const actions = {
                previous: () => this.step(-1),
                next: () => this.step(1),
                remove: () => this.remove(),
                replace: () => this.file.click(),
                save: () => this.save(),
                close: () => this.close(),
            };
            const names = Object.keys(actions);
            this.buttons = Object.fromEntries(names.map((name) => [name, dialogButton(WORDS[name], name)]));
            const row = create("div", { class: "train-tools-actions" }, ...Object.values(this.buttons));
            this.element = dialog(
                "train_tools_editor",
                ...[this.title, this.image, this.label, this.caption, this.status, this.trained, row, this.file],
            );
            this.element.setAttribute("aria-labelledby", this.title.id);
            for (const [name, action] of Object.entries(actions)) this.buttons[name].addEventListener("click", action);
            this.element.addEventListener("keydown", (event) => this.onKey(event));
            this.element.addEventListener("cancel", (event) => {
                event.preventDefault();
                this.close();
            });
            this.element.addEventListener("close", () => this.opener?.focus());
        },

        open(opener) {
            if (!this.element?.isConnected) this.build();
            this.version = shown();
            this.show(opener);
            this.element.showModal();
            this.caption.focus();
        },

        show(opener) {
            const { open: file, picture, caption, waiting } = opener.dataset;
            this.opener = opener;
            this.refused = null;
            this.title.textContent = file;
            this.image.src = picture;
            this.image.alt = file;
            this.caption.value = caption;
            const isWaiting = waiting === "1";
            this.caption.readOnly = isWaiting;
            this.buttons.save.disabled = isWaiting;
            const others = this.openers();
            this.buttons.previous.disabled = others[0] === opener;
            this.buttons.next.disabled = others.at(-1) === opener;
            this.tell(isWaiting ? [{ words: WORDS.waits }] : []);
            this.showTrained();
        },

        // Those that stand beside the one that was opened: in the gallery, a finding, the list of captions.
        openers() {
            const part = this.opener.closest("[data-live]");
            return [...(part?.querySelectorAll("[data-open]") ?? [])];
        },

        // The very text that training takes, with the borders of its chunks and what is cut off.
        async showTrained() {
            const { opener } = this;
            this.trained.replaceChildren();
            if (opener.dataset.waiting === "1") return;
            const query = new URLSearchParams({ ...this.version, file: opener.dataset.open });
            const response = await request(`captions/trained-text?${query}`).catch(() => null);
            if (!response?.ok || this.opener !== opener) return;
            const told = await response.json();
            if (this.opener !== opener) return;
            const { chunks, cut, token_count: count } = told.plain;
            const text = chunks.map((chunk) => chunk.text).join(" | ");
            const lines = [
                { words: WORDS.trainedAs, value: text },
                { words: WORDS.tokens, value: `${count} / ${told.max_tokens}` },
            ];
            if (cut.text) lines.push({ words: WORDS.cutOff, value: cut.text });
            if (told.left_out.length) lines.push({ words: WORDS.leftOut, value: told.left_out.join(", ") });
            if (told.shuffled.length) lines.push({ words: WORDS.changing, value: told.shuffled.join(", ") });
            this.trained.replaceChildren(...lines.map(lineOf));
        },

        tell(lines) {
            this.status.replaceChildren(...lines.map(lineOf).flatMap((line) => [...line.childNodes, " "]));
        },

        async step(by) {
            const others = this.openers();
            const other = others[others.indexOf(this.opener) + by];
            if (!other) return;
            if (this.isChanged() && !(await this.save())) return;
            this.show(other);
        },

        isChanged() {
            const { readOnly, value } = this.caption;
            return !readOnly && value !== this.opener.dataset.caption && value !== this.refused;
        },

        async save() {
            const caption = this.caption.value;
            const opener = this.opener;
            try {
                await post("dataset/caption", { ...this.version, file: opener.dataset.open, caption });
            } catch (error) {
                this.refused = caption;
                this.tell(error.lines ?? [{ words: WORDS.wrong }]);
                return false;
            }
            opener.dataset.caption = caption;
            this.tell([{ words: WORDS.captionSaved }]);
            this.showTrained();
            poll();
            return true;
        },

        // What was typed is kept; what the server refuses is told once.
        async close() {
            if (!this.isChanged() || (await this.save())) this.element.close();
        },

        async remove() {
            const others = this.openers();
            const place = others.indexOf(this.opener);
            try {
                const answer = await post("dataset/remove", { ...this.version, file: this.opener.dataset.open });
                this.opener = others[place + 1] ?? others[place - 1] ?? null;
                this.element.close();
                sayAnswer(answer);
            } catch (error) {
                this.tell(error.lines ?? [{ words: WORDS.wrong }]);
            }
            poll();
        },

        async replace() {
            const [chosen] = this.file.files;
            this.file.value = "";
            if (!chosen) return;
            try {
                const content = await base64(chosen);
                const body = { ...this.version, file: this.opener.dataset.open, name: chosen.name, content };
                const answer = await post("dataset/replace", body);
                this.element.close();
                sayAnswer(answer);
            } catch (error) {
                this.tell(error.lines ?? [{ words: WORDS.wrong }]);
            }
            poll();
        },

        onKey(event) {
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.save();
            if (event.target === this.caption) return;
            if (event.key === "ArrowLeft") this.step(-1);
            if (event.key === "ArrowRight") this.step(1);
        },
    };

    // --- previews: the pictures of a job in a table, compared with each other ---

    const AXES = {
        lora: () => "LoRA",
        sampler: () => WORDS.sampler,
        steps: () => WORDS.steps,
        cfg: () => WORDS.cfg,
        seed: () => WORDS.seed,
        weight: () => WORDS.weight,
        picture: () => WORDS.picture,
    };

    const WAYS = {
        left: { name: WORDS.left, sign: "←", key: "ArrowLeft", way: "columns", by: -1 },
        right: { name: WORDS.right, sign: "→", key: "ArrowRight", way: "columns", by: 1 },
        up: { name: WORDS.up, sign: "↑", key: "ArrowUp", way: "rows", by: -1 },
        down: { name: WORDS.down, sign: "↓", key: "ArrowDown", way: "rows", by: 1 },
    };

    const moved = (place, axis, to) => place.map((own, index) => (index === axis ? to : own));

    // The table stands in a dialog of its own, which redrawing the page does not touch. A picture that is pointed at
    // shows half of the one that it is compared with; while the key C is held, the whole of that.
    const grids = {
        element: null,
        opener: null,
        job: "",
        axes: [], // {name, labels}
        pictures: new Map(), // places on all axes, with commas -> file
        rows: -1, // an axis, as columns; -1 is none
        columns: -1,
        place: [],
        enlarged: [], // the place that stands alone, in a second dialog
        pinned: null,
        isAsking: false,

        build() {
            this.title = create("h3", { id: "train_tools_grid_title" }, create("span", {}, WORDS.compare));
            this.choices = create("div", { class: "train-tools-grid-choices" });
            this.table = create("div", { class: "train-tools-grid-table" });
            const helps = [WORDS.gridHelp, WORDS.gridKeys].flatMap((text) => [create("span", {}, text), " "]);
            this.help = create("p", { class: "train-tools-line train-tools-quiet" }, ...helps);
            const close = dialogButton(WORDS.close, "close");
            close.addEventListener("click", () => this.element.close());
            const row = create("div", { class: "train-tools-actions" }, close);
            this.element = dialog("train_tools_grid", this.title, this.choices, this.help, this.table, row);
            this.element.classList.add("train-tools-wide");
            this.element.setAttribute("aria-labelledby", this.title.id);
            this.element.addEventListener("close", () => this.opener?.isConnected && this.opener.focus());
            this.table.addEventListener("click", (event) => this.onClick(event));
            this.table.addEventListener("keydown", (event) => this.onKey(event));
            this.table.addEventListener("keyup", (event) => {
                const button = event.target.closest("td[data-row] button");
                if (button && event.key.toLowerCase() === "c") this.wipe(button, 50);
            });
            for (const name of ["pointermove", "pointerout", "focusin", "focusout"]) {
                this.table.addEventListener(name, (event) => this.onPoint(event));
            }
            this.choices.addEventListener("change", (event) => this.onChoice(event.target));
            this.buildBig();
        },

        buildBig() {
            this.caption = create("h3", { id: "train_tools_grid_caption", class: "train-tools-value" });
            this.frame = create("div", { class: "train-tools-grid-big" });
            this.note = create("p", { class: "train-tools-line train-tools-quiet", role: "status" });
            const buttons = Object.entries(WAYS).map(([action, { name, sign }]) => {
                const button = dialogButton(sign, action);
                button.setAttribute("aria-label", name);
                button.title = name;
                return button;
            });
            buttons.push(dialogButton(WORDS.pin, "pin"), dialogButton(WORDS.close, "close"));
            const row = create("div", { class: "train-tools-actions" }, ...buttons);
            this.big = dialog("train_tools_grid_big", this.caption, this.frame, this.note, row);
            this.big.classList.add("train-tools-wide");
            this.big.setAttribute("aria-labelledby", this.caption.id);
            row.addEventListener("click", (event) => this.act(event.target.dataset.action));
            this.big.addEventListener("keydown", (event) => this.onBigKey(event));
            this.big.addEventListener("keyup", (event) => event.key.toLowerCase() === "c" && this.wipe(this.frame, 50));
            this.big.addEventListener("close", () => {
                this.place = this.enlarged; // closing has put the focus, and so the place, back to where it was opened
                this.draw();
                this.focusCell();
            });
            this.frame.addEventListener("pointermove", (event) => this.wipe(this.frame, this.share(this.frame, event)));
        },

        async open(opener) {
            if (!this.element?.isConnected || !this.big.isConnected) this.build();
            this.opener = opener;
            if (!(await this.load(opener.dataset.grid))) {
                say([{ words: WORDS.wrong }], "error");
                return;
            }
            if (!this.element.open) this.element.showModal();
            const wanted = [...this.pictures].find(([, file]) => file === opener.dataset.file);
            if (wanted) {
                this.place = wanted[0].split(",").map(Number);
                this.draw();
                this.enlarge();
            } else this.focusCell();
        },

        // Asks for the places of a job; the choices stay where it is the one that is shown.
        async load(job) {
            const response = await request(`grids/table?${new URLSearchParams({ job })}`).catch(() => null);
            const told = response?.ok ? await response.json() : null;
            if (!told) return false;
            const most = Math.max(1, ...told.cells.map((cell) => cell.files.length));
            const isNew = job !== this.job;
            this.job = job;
            this.axes = told.axes;
            if (most > 1) {
                this.axes.push({ name: "picture", labels: Array.from({ length: most }, (_, index) => `${index + 1}`) });
            }
            this.pictures = new Map();
            for (const { place, files } of told.cells) {
                files.forEach((file, index) => this.pictures.set((most > 1 ? [...place, index] : place).join(), file));
            }
            if (isNew || this.place.length !== this.axes.length) {
                this.columns = this.axes.length - 1;
                this.rows = this.axes.length - 2;
                this.place = this.axes.map(() => 0);
                this.pinned = null;
            }
            this.table.style.setProperty("--train-tools-shape", `${told.width_px} / ${told.height_px}`);
            this.draw();
            return true;
        },

        // New pictures of a job that is being drawn appear where they belong.
        async refresh() {
            if (!this.element?.open || this.isAsking) return;
            this.isAsking = true;
            await this.load(this.job).catch(() => {}); // it may be deleted: what is shown stays
            this.isAsking = false;
        },

        fileAt(place) {
            return this.pictures.get(place.join());
        },

        told(place) {
            const texts = this.axes.map(({ name, labels }, axis) => `${AXES[name]()}: ${labels[place[axis]]}`);
            return texts.join(", ") || WORDS.picture;
        },

        url(file, size) {
            const { base, token } = connection();
            return `${base}grids/picture?${new URLSearchParams({ job: this.job, file, size, token })}`;
        },

        // Weight 0 shows what the base model draws; a pinned picture comes first, else the first one of the row.
        partner(place) {
            if (this.pinned) return this.pinned;
            const axis = this.axes.findIndex(({ name, labels }) => name === "weight" && labels.includes("0"));
            if (axis >= 0) return moved(place, axis, this.axes[axis].labels.indexOf("0"));
            return this.columns < 0 ? place : moved(place, this.columns, 0);
        },

        // --- the table ---

        at(row, column) {
            const place = [...this.place];
            if (this.rows >= 0) place[this.rows] = row;
            if (this.columns >= 0) place[this.columns] = column;
            return place;
        },

        labelsOf(axis) {
            return axis < 0 ? [""] : this.axes[axis].labels;
        },

        draw() {
            const shape = JSON.stringify([this.job, this.rows, this.columns, this.axes]);
            if (this.shape !== shape) {
                this.shape = shape;
                this.drawChoices();
                this.drawTable();
            }
            for (const cell of this.table.querySelectorAll("td")) this.fillCell(cell);
        },

        drawChoices() {
            const select = (name, label, options, chosen) => {
                const id = `train_tools_grid_choice_${name}`;
                const element = create("select", { id, "data-choice": name });
                for (const [value, text] of options) element.append(create("option", { value }, text));
                element.value = chosen;
                return create("div", {}, create("label", { for: id }, label), " ", element);
            };
            const names = this.axes.map(({ name }, axis) => [axis, AXES[name]()]);
            const isFree = (axis) => axis !== this.rows && axis !== this.columns;
            const ways = this.axes.length > 1 ? [["rows", WORDS.rows], ["columns", WORDS.columns]] : [];
            this.choices.replaceChildren(
                ...ways.map(([way, label]) => select(way, label, names, this[way])),
                ...names.filter(([axis]) => isFree(axis)).map(([axis, label]) =>
                    select(axis, label, this.axes[axis].labels.map((text, value) => [value, text]), this.place[axis])),
            );
        },

        drawTable() {
            const head = create("tr", {});
            if (this.rows >= 0) head.append(create("td", {}));
            for (const label of this.labelsOf(this.columns)) {
                if (this.columns >= 0) head.append(create("th", { scope: "col", class: "train-tools-value" }, label));
            }
            const rows = this.labelsOf(this.rows).map((label, row) => {
                const line = create("tr", {});
                if (this.rows >= 0) line.append(create("th", { scope: "row", class: "train-tools-value" }, label));
                this.labelsOf(this.columns).forEach((_, column) => {
                    line.append(create("td", { "data-row": row, "data-column": column }));
                });
                return line;
            });
            this.table.replaceChildren(create("table", {}, create("thead", {}, head), create("tbody", {}, ...rows)));
        },

        fillCell(cell) {
            if (cell.dataset.row === undefined) return;
            const place = this.at(Number(cell.dataset.row), Number(cell.dataset.column));
            const file = this.fileAt(place) ?? "";
            const isPinned = this.pinned?.join() === place.join();
            cell.classList.toggle("train-tools-pinned", isPinned);
            const isHere = place.join() === this.place.join();
            if (cell.dataset.file !== file) {
                cell.dataset.file = file;
                cell.replaceChildren();
                if (file) {
                    const shown = { src: this.url(file, "thumb"), alt: this.told(place), loading: "lazy" };
                    const image = create("img", shown);
                    cell.append(create("button", { type: "button", class: "train-tools-value" }, image));
                } else cell.append(create("span", { class: "train-tools-quiet" }, "–"));
            }
            const button = cell.querySelector("button");
            if (!button) return;
            button.tabIndex = isHere ? 0 : -1;
            button.title = isPinned ? WORDS.pinned : "";
        },

        cellOf(place) {
            const row = this.rows < 0 ? 0 : place[this.rows];
            const column = this.columns < 0 ? 0 : place[this.columns];
            return this.table.querySelector(`td[data-row="${row}"][data-column="${column}"]`);
        },

        placeOf(cell) {
            return this.at(Number(cell.dataset.row), Number(cell.dataset.column));
        },

        focusCell() {
            if (!this.element.open) return;
            const button = this.cellOf(this.place)?.querySelector("button");
            (button ?? this.table.querySelector("button"))?.focus();
        },

        onChoice(select) {
            const { choice } = select.dataset;
            const value = Number(select.value);
            if (choice === "rows" || choice === "columns") {
                const other = choice === "rows" ? "columns" : "rows";
                if (this[other] === value) this[other] = this[choice];
                this[choice] = value;
            } else this.place[Number(choice)] = value;
            this.draw();
            this.choices.querySelector(`[data-choice="${choice}"]`)?.focus();
        },

        onClick(event) {
            const cell = event.target.closest("td[data-row]");
            if (!cell?.querySelector("button")) return;
            this.place = this.placeOf(cell);
            this.draw();
            this.enlarge();
        },

        onKey(event) {
            const cell = event.target.closest("td[data-row]");
            if (!cell) return;
            if (event.key.toLowerCase() === "c") this.wipe(cell.firstChild, 100);
            else if (event.key.toLowerCase() === "p") this.pin();
            else if (this.go(event.key)) {
                event.preventDefault();
                this.draw();
                this.focusCell();
            }
        },

        // To the next picture that is there; false where the key means no way, or there is none.
        go(key) {
            const { way, by } = Object.values(WAYS).find((one) => one.key === key) ?? {};
            const axis = way ? this[way] : -1;
            if (axis < 0) return false;
            for (let to = this.place[axis] + by; to in this.axes[axis].labels; to += by) {
                const place = moved(this.place, axis, to);
                if (!this.fileAt(place)) continue;
                this.place = place;
                return true;
            }
            return false;
        },

        pin() {
            const isPinned = this.pinned?.join() === this.place.join();
            this.pinned = isPinned ? null : [...this.place];
            this.draw();
        },

        // --- comparing ---

        onPoint(event) {
            const cell = event.target.closest?.("td[data-row]");
            const button = cell?.querySelector("button");
            if (!button) return;
            if (event.type === "focusin") {
                this.place = this.placeOf(cell);
                this.draw();
            }
            const leaves = event.type === "pointerout" || event.type === "focusout";
            if (leaves && !button.contains(event.relatedTarget)) button.querySelector(".train-tools-over")?.remove();
            if (leaves) return;
            this.lay(button, this.placeOf(cell), "thumb");
            this.wipe(button, event.type === "focusin" ? 50 : this.share(button, event));
        },

        // The picture that `place` is compared with, over it.
        lay(frame, place, size) {
            const partner = this.partner(place);
            const file = partner.join() === place.join() ? "" : this.fileAt(partner);
            const over = frame.querySelector(".train-tools-over");
            if (over?.dataset.file === file) return;
            over?.remove();
            if (!file) return;
            const image = { src: this.url(file, size), alt: "", class: "train-tools-over", "data-file": file };
            frame.append(create("img", image));
        },

        // So much of the other picture is seen, from the left, in percent.
        wipe(frame, percent) {
            frame.style.setProperty("--train-tools-share", `${percent}%`);
        },

        share(frame, event) {
            const { left, width } = frame.getBoundingClientRect();
            return Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width));
        },

        // --- one picture, enlarged ---

        enlarge() {
            this.showBig();
            if (!this.big.open) this.big.showModal();
        },

        showBig() {
            const file = this.fileAt(this.place);
            if (!file) return;
            const text = this.told(this.place);
            this.enlarged = this.place;
            this.caption.textContent = text;
            this.frame.replaceChildren(create("img", { src: this.url(file, "full"), alt: text }));
            this.lay(this.frame, this.place, "full");
            this.wipe(this.frame, 50);
            const partner = this.partner(this.place);
            const isCompared = Boolean(this.frame.querySelector(".train-tools-over"));
            const line = lineOf({ words: WORDS.comparedWith, value: this.told(partner) });
            this.note.replaceChildren(...(isCompared ? line.childNodes : []));
            const isPinned = this.pinned?.join() === this.place.join();
            this.big.querySelector('[data-action="pin"]').setAttribute("aria-pressed", isPinned);
            for (const [action, { key }] of Object.entries(WAYS)) {
                this.big.querySelector(`[data-action="${action}"]`).disabled = !this.canGo(key);
            }
        },

        canGo(key) {
            const before = this.place;
            const can = this.go(key);
            this.place = before;
            return can;
        },

        act(action) {
            if (action === "close") {
                this.big.close();
                return;
            }
            if (action === "pin") this.pin();
            else if (!this.go(WAYS[action]?.key)) return;
            this.draw();
            this.showBig();
        },

        onBigKey(event) {
            if (event.key.toLowerCase() === "c") this.wipe(this.frame, 100);
            else if (event.key.toLowerCase() === "p") this.act("pin");
            else if (this.go(event.key)) {
                event.preventDefault();
                this.draw();
                this.showBig();
            }
        },
    };

    // --- languages of the standalone page; WebUIs translate by themselves, from the same files ---

    const LANGUAGES = { ja: ["ja_JP", "ja"], zh: ["zh_CN", "zh-CN"] };

    async function localize() {
        const wanted = navigator.languages.map((name) => name.slice(0, 2).toLowerCase());
        const chosen = wanted.find((name) => name === "en" || name in LANGUAGES);
        if (!connection().localize || !(chosen in LANGUAGES)) return;
        const [file, tag] = LANGUAGES[chosen];
        const response = await request(`localizations/${file}.json`);
        if (!response.ok) return;
        const dictionary = await response.json();
        document.documentElement.lang = tag;
        translate(document.body, dictionary);
        const watched = { subtree: true, childList: true, characterData: true, attributeFilter: TRANSLATED };
        new MutationObserver((changes) => {
            for (const { type, target, addedNodes } of changes) {
                for (const node of type === "childList" ? addedNodes : [target]) translate(node, dictionary);
            }
        }).observe(document.body, watched);
    }

    function translate(node, dictionary) {
        const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
        if (!element?.closest || element.closest(".train-tools-value, textarea, script, style")) return;
        if (node.nodeType === Node.TEXT_NODE) {
            const key = node.data.trim();
            if (key && Object.hasOwn(dictionary, key) && dictionary[key] !== key) {
                node.data = node.data.replace(key, () => dictionary[key]);
            }
            return;
        }
        for (const name of TRANSLATED) {
            const key = element.getAttribute(name)?.trim();
            if (key && Object.hasOwn(dictionary, key) && dictionary[key] !== key) {
                element.setAttribute(name, dictionary[key]);
            }
        }
        for (const child of element.childNodes) translate(child, dictionary);
    }

    // --- start ---

    function start() {
        if (!page()) {
            setTimeout(start, 200);
            return;
        }
        new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && poll()).observe(page());
        document.addEventListener("visibilitychange", () => isVisible() && poll());
        document.addEventListener("pointerdown", () => failures >= 3 && isVisible() && poll());
        localize().catch(() => {}); // English is there without it
        poll();
    }
    start();
})();
