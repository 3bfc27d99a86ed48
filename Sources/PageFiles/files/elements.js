// Making elements and keeping them up to date. Texts are only ever set as text, never as markup.

/** An element: `element("li", {class: "row", title: "x"}, child, "text")`. */
export function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    set(made, attributes);
    made.append(...children.filter((child) => child !== null));
    return made;
}

/** An element of SVG. */
export function drawing(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    set(made, attributes);
    made.append(...children);
    return made;
}

function set(made, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value === null || value === false) continue;
        made.setAttribute(name, value === true ? "" : value);
    }
}

/** The element of that id. */
export const byID = (id) => document.getElementById(id);

/** Sets a text only where it is another one: what did not change is not announced again. */
export function setText(target, text) {
    if (target.textContent !== text) target.textContent = text;
}

/**
 * Keeps the children of `list` in the order of `items`, one for each, known by `key`: made once by
 * `make`, brought up to date by `update`. Focus and scroll positions stay.
 */
export function keep(list, items, key, make, update) {
    const known = list.known ?? (list.known = new Map());
    const wanted = new Set();
    let place = list.firstElementChild;
    for (const item of items) {
        const name = key(item);
        wanted.add(name);
        let child = known.get(name);
        if (!child) {
            child = make(item);
            known.set(name, child);
        }
        update(child, item);
        if (child === place) {
            place = place.nextElementSibling;
        } else {
            list.insertBefore(child, place);
        }
    }
    for (const [name, child] of known) {
        if (wanted.has(name)) continue;
        child.remove();
        known.delete(name);
    }
}

/** A definition list from pairs; pairs without a value are left out. */
export function facts(list, pairs) {
    keep(
        list, pairs.filter((pair) => pair[1]), (pair) => pair[0],
        (pair) => element("div", {}, element("dt", {}, pair[0]), element("dd")),
        (row, pair) => setText(row.lastElementChild, pair[1]));
}

/** A small word with a colour: `kind` is good, busy, bad or calm. */
export function badge(text, kind = "calm", title = null) {
    return element("span", { class: `badge ${kind}`, title }, text);
}

/** Options of a `select`, keeping what is chosen where it is still there. */
export function choices(select, options) {
    const text = JSON.stringify(options);
    if (select.choices === text) return;
    select.choices = text;
    const chosen = select.value;
    select.replaceChildren(
        ...options.map((option) => element("option", { value: option.value }, option.text)));
    if (options.some((option) => option.value === chosen)) select.value = chosen;
}
