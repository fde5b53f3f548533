// What hosts give to the scripts of extensions, written anew for tests: the same names, the same moments.
"use strict";

function gradioApp() {
    const element = document.querySelector("gradio-app");
    return (element && element.shadowRoot) || document;
}

const uiCallbacks = {loaded: [], update: [], afterUpdate: [], tabChange: []};
const onUiLoaded = (callback) => void uiCallbacks.loaded.push(callback);
const onUiUpdate = (callback) => void uiCallbacks.update.push(callback);
const onAfterUiUpdate = (callback) => void uiCallbacks.afterUpdate.push(callback);
const onUiTabChange = (callback) => void uiCallbacks.tabChange.push(callback);

function callAll(callbacks, argument) {
    for (const callback of callbacks) {
        try {
            callback(argument);
        } catch (error) {
            console.error("error running callback", error);
        }
    }
}

function get_uiCurrentTab() {
    return gradioApp().querySelector('#tabs > .tab-nav > button.selected, #tabs button[role="tab"][aria-selected="true"]');
}

function updateInput(target) {
    target.dispatchEvent(new Event("input", {bubbles: true}));
}

function switch_to_txt2img() {
    gradioApp().querySelector('#tabs [role="tab"], #tabs > .tab-nav > button').click();
    return Array.from(arguments);
}

// --- localisation: whole text nodes, placeholders and titles ---

const pictograph = /\p{Extended_Pictographic}/u;
const untranslated = new Set(["SCRIPT", "STYLE", "TEXTAREA"]);

function translation(text) {
    const key = text.trim();
    return key && !pictograph.test(key) ? window.localization[key] : undefined;
}

function localizeNode(node) {
    if (node.nodeType === Node.TEXT_NODE) {
        const parent = node.parentElement;
        const translated = parent && !untranslated.has(parent.tagName) && translation(node.textContent);
        if (translated) node.textContent = translated;
        return;
    }
    for (const name of ["title", "placeholder"]) {
        const value = node.getAttribute && node.getAttribute(name);
        const translated = value && window.localization[value.trim()];
        if (translated) node.setAttribute(name, translated);
    }
    node.childNodes.forEach(localizeNode);
}

// --- moments ---

let isLoaded = false;
let lastTab = null;
let afterTimer = 0;

const observer = new MutationObserver((mutations) => {
    if (Object.keys(window.localization).length) {
        for (const mutation of mutations) mutation.addedNodes.forEach(localizeNode);
    }
    callAll(uiCallbacks.update, mutations);
    clearTimeout(afterTimer);
    afterTimer = setTimeout(() => callAll(uiCallbacks.afterUpdate), 200);
    if (!isLoaded && gradioApp().querySelector("#txt2img_prompt")) {
        isLoaded = true;
        callAll(uiCallbacks.loaded);
    }
    const tab = get_uiCurrentTab();
    if (tab && tab !== lastTab) {
        lastTab = tab;
        callAll(uiCallbacks.tabChange);
    }
});

document.addEventListener("DOMContentLoaded", () => observer.observe(gradioApp(), {childList: true, subtree: true}));

// --- LoRA cards, Reload UI ---

document.addEventListener("click", (event) => {
    const target = event.composedPath()[0];
    const card = target.closest && target.closest("#txt2img_lora_cards .card");
    if (card) {
        const box = gradioApp().querySelector("#txt2img_prompt textarea");
        box.value = [box.value, card.dataset.prompt].filter(Boolean).join(" ");
        updateInput(box);
    }
    if (target.closest && target.closest("#settings_restart_gradio")) setTimeout(reloadWhenBack, 2000);
});

function reloadWhenBack() {
    fetch("./internal/ping").then(
        (answer) => (answer.ok ? location.reload() : setTimeout(reloadWhenBack, 500)),
        () => setTimeout(reloadWhenBack, 500),
    );
}
