// The picture of changes: the device as a map of cells, each coloured by when it was last changed.
//
// Cells run from left to right, line by line, as text does. Which cells an increment from the chosen
// cut would move is told by their strength, when they changed by their colour. With the arrow keys a
// cell is chosen and described in words.

import { byID, choices, element, keep, setText } from "./elements.js";
import { bytes, moment, percent } from "./words.js";

/** Most cells that are asked for. */
const cellsMax = 2048;
const gap = 1;

/** The classes of cells, the newest first; names of colours in the style sheet. */
const classes = ["new", "before", "older", "never"];

/** The class of a cell. `newest`: the epochs of the two newest checkpoints, 0 without. */
export function classOf(cell, [newest, second]) {
    if (cell.epoch === 0) return 3;
    if (cell.epoch > newest) return 0;
    return cell.epoch > second ? 1 : 2;
}

export class Picture {
    constructor(ask) {
        this.ask = ask;
        this.canvas = byID("picture");
        this.chosen = null;
        this.summary = null;
        byID("base").addEventListener("change", () => this.ask());
        this.canvas.addEventListener("keydown", (event) => this.key(event));
        this.canvas.addEventListener("pointermove", (event) => this.point(event));
        this.canvas.addEventListener("pointerleave", () => this.choose(null));
        this.canvas.addEventListener("blur", () => this.choose(null));
        new ResizeObserver(() => this.draw()).observe(byID("picture-frame"));
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    }

    /** What to ask the service for. */
    query(device) {
        const base = byID("base").value;
        const since = base && this.device === device ? `&since=${encodeURIComponent(base)}` : "";
        return `/v1/devices/${encodeURIComponent(device)}/changes/summary?cells=${cellsMax}${since}`;
    }

    /** Forgets what was shown: another device follows. */
    clear(device) {
        this.device = device;
        this.summary = null;
        this.chosen = null;
        byID("base").replaceChildren();
        byID("base").choices = null;
        setText(byID("picture-sentence"), "");
        byID("increments").replaceChildren();
        byID("increments").known = null;
        this.draw();
    }

    /** Why there is no picture. */
    fail(message) {
        this.summary = null;
        setText(byID("picture-sentence"), message);
        this.draw();
    }

    show(summary) {
        this.summary = summary;
        this.epochs = [summary.checkpoints[0]?.epoch ?? 0, summary.checkpoints[1]?.epoch ?? 0];
        this.showBases();
        this.showLegend();
        this.showIncrements();
        this.draw();
        if (this.chosen !== null) this.choose(this.chosen);
    }

    showBases() {
        const { checkpoints, since, size, changed_bytes: changed } = this.summary;
        const options = checkpoints.map(({ name }) => ({ value: name, text: name }));
        if (!options.some(({ value }) => value === since.name) && since.name !== "generation") {
            options.push({ value: since.name, text: since.name });
        }
        choices(byID("base"), [...options, { value: "generation", text: "tracking began" }]);
        byID("base").value = since.name;
        const cut = since.name === "generation" ? "tracking began" : since.name;
        setText(
            byID("picture-sentence"),
            `${bytes(changed)} of ${bytes(size)} changed since ${cut} (${percent(changed, size)}).`);
        setText(
            byID("picture-hint"),
            `One cell is ${bytes(this.summary.cell_size)}. Strong cells changed since ${cut}, pale ones `
                + "did not. Arrow keys choose a cell.");
    }

    showLegend() {
        const [newest, second] = this.summary.checkpoints.map(({ name }) => name);
        const texts = newest
            ? [
                `after ${newest}`, second ? `after ${second}` : `before ${newest}`,
                second ? "earlier" : null, "never changed",
            ]
            : ["changed since tracking began", null, null, "never changed"];
        if (newest && !second) texts[1] = `before ${newest}`;
        const shown = classes.map((name, index) => ({ name, text: texts[index] }))
            .filter(({ text }) => text);
        keep(
            byID("legend"), shown, ({ name }) => name,
            ({ name }) => element(
                "li", {}, element("span", { class: `swatch ${name}` }), element("span")),
            (row, { text }) => setText(row.lastElementChild, text));
    }

    /** What an increment from each checkpoint would move now. */
    showIncrements() {
        const place = byID("increments");
        const { checkpoints } = this.summary;
        if (!checkpoints.length) {
            place.replaceChildren();
            place.known = null;
            return;
        }
        if (!place.list) {
            place.list = element("ol", { class: "rows bars" });
        }
        if (!place.firstChild) {
            place.append(element("h3", {}, "What an increment would move"), place.list);
        }
        const most = Math.max(...checkpoints.map(({ changed_bytes: count }) => count), 1);
        keep(
            place.list, checkpoints.slice(0, 8), ({ name }) => name,
            ({ name, created_at: time }) => element(
                "li", {}, element("span", { class: "name" }, name),
                element("span", { class: "muted when" }, moment(time)),
                element("span", { class: "bar", "aria-hidden": "true" }, element("span")),
                element("span", { class: "number" })),
            (row, { changed_bytes: count }) => {
                row.querySelector(".bar span").style.width = `${(count * 100) / most}%`;
                setText(row.lastElementChild, bytes(count));
            });
    }

    // Drawing

    layout() {
        const count = this.summary?.cells.length ?? 0;
        const width = byID("picture-frame").clientWidth;
        if (!count || !width) return null;
        // Cells of about this size, whole columns, as many lines as that takes.
        const wanted = Math.max(6, Math.min(18, Math.sqrt((width * 220) / count)));
        const columns = Math.max(1, Math.min(count, Math.floor(width / wanted)));
        const pitch = width / columns;
        const rows = Math.ceil(count / columns);
        return { count, width, columns, pitch, rows, line: Math.min(pitch, 18) };
    }

    draw() {
        const canvas = this.canvas;
        const place = this.layout();
        canvas.hidden = !place;
        if (!place) return;
        const { count, width, columns, pitch, rows, line } = place;
        const scale = window.devicePixelRatio || 1;
        const height = rows * line;
        canvas.width = Math.round(width * scale);
        canvas.height = Math.round(height * scale);
        canvas.style.height = `${height}px`;
        canvas.dataset.columns = columns;
        canvas.dataset.rows = rows;
        const style = getComputedStyle(canvas);
        const colours = classes.map((name) => style.getPropertyValue(`--cell-${name}`).trim());
        const context = canvas.getContext("2d");
        context.setTransform(scale, 0, 0, scale, 0, 0);
        context.clearRect(0, 0, width, height);
        const most = this.summary.cell_size / 4096;
        for (let index = 0; index < count; index += 1) {
            const cell = this.summary.cells[index];
            const kind = classOf(cell, this.epochs);
            // A cell of which little changed is lighter than one that changed as a whole, and still
            // stands out: few blocks in a large cell are news, too.
            const share = Math.min(1, cell.changed_blocks / most);
            context.globalAlpha =
                kind === 3 ? 1 : cell.changed_blocks > 0 ? 0.66 + 0.34 * Math.sqrt(share) : 0.42;
            context.fillStyle = colours[kind];
            const [x, y] = [(index % columns) * pitch, Math.floor(index / columns) * line];
            context.fillRect(x, y, pitch - gap, line - gap);
        }
        if (this.chosen !== null) {
            context.globalAlpha = 1;
            context.strokeStyle = style.getPropertyValue("--text").trim();
            context.lineWidth = 2;
            const [x, y] = [
                (this.chosen % columns) * pitch, Math.floor(this.chosen / columns) * line,
            ];
            context.strokeRect(x, y, pitch - gap, line - gap);
        }
    }

    // Choosing a cell

    key(event) {
        const place = this.layout();
        if (!place) return;
        const steps = {
            ArrowRight: 1, ArrowLeft: -1, ArrowDown: place.columns, ArrowUp: -place.columns,
            Home: -Infinity, End: Infinity,
        };
        if (event.key === "Escape") return this.choose(null);
        if (!(event.key in steps)) return;
        event.preventDefault();
        const from = this.chosen ?? (steps[event.key] > 0 ? -1 : 0);
        const next = from + (this.chosen === null ? 1 : steps[event.key]);
        this.choose(Math.max(0, Math.min(place.count - 1, next)));
    }

    point(event) {
        const place = this.layout();
        if (!place) return;
        const column = Math.min(place.columns - 1, Math.floor(event.offsetX / place.pitch));
        const index = Math.floor(event.offsetY / place.line) * place.columns + column;
        this.choose(index < place.count ? index : null);
    }

    choose(index) {
        if (index !== null && !(index >= 0 && index < (this.summary?.cells.length ?? 0))) {
            index = null;
        }
        const isOther = index !== this.chosen;
        this.chosen = index;
        setText(byID("picture-cell"), index === null ? "" : this.describe(index));
        if (isOther) this.draw();
    }

    describe(index) {
        const { cells, cell_size: each, size, since } = this.summary;
        const cell = cells[index];
        const start = index * each;
        const place = `${bytes(start)} to ${bytes(Math.min(start + each, size))}`;
        if (cell.epoch === 0) return `${place}: never changed.`;
        const changed = Math.min(cell.changed_blocks * 4096, size);
        const cut = since.name === "generation" ? "tracking began" : since.name;
        const last = cell.last ? `last changed after ${cell.last}` : "changed before any checkpoint";
        return `${place}: ${bytes(changed)} changed since ${cut}; ${last}.`;
    }
}
