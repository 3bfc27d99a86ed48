// Small charts: lines over the last minutes, drawn as SVG, each with its newest value in words.

import { drawing, element, setText } from "./elements.js";

const [width, height] = [240, 56];

/** Places for samples: as many as there are, between a few, so that lines are soon seen, and `most`. */
const places = (count, most) => Math.min(Math.max(count, 30), most);

/** The path of a line through `values`, which end at the right; those that are null are gaps. */
function line(values, slots, most) {
    let path = "";
    let isOpen = false;
    values.forEach((value, index) => {
        if (value === null) {
            isOpen = false;
            return;
        }
        const x = width - ((values.length - 1 - index) / (slots - 1)) * width;
        const y = height - 1 - (value / most) * (height - 4);
        path += `${isOpen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
        isOpen = true;
    });
    return path;
}

/** A chart of one or two lines. */
export class Chart {
    /** `names` of the lines; `words` says a value, or that there is none. */
    constructor(title, names, words, slots = 120) {
        this.words = words;
        this.slots = slots;
        this.names = names;
        this.lines = names.map((_, index) => drawing("path", { class: `line line-${index}` }));
        this.areas = names.map((_, index) => drawing("path", { class: `area line-${index}` }));
        this.values = names.map((_, index) => element("span", { class: `value line-${index}` }));
        this.most = element("span", { class: "most muted" });
        this.element = element(
            "figure", { class: "chart" },
            element(
                "figcaption", {},
                element("span", { class: "line" }, element("span", { class: "title" }, title), this.most),
                ...names.map((name, index) => element(
                    "span", { class: "series" },
                    element("span", { class: `dot line-${index}` }), `${name} `,
                    this.values[index]))),
            element(
                "div", { class: "plot", "aria-hidden": "true" },
                drawing(
                    "svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" },
                    ...this.areas, ...this.lines)));
    }

    /** `series`: for each line its values, the newest last. */
    show(series) {
        const most = Math.max(...series.flat().filter((value) => value !== null), 0);
        setText(this.most, most > 0 ? `max ${this.words(most)}` : "");
        series.forEach((values, index) => {
            const recent = values.slice(-this.slots);
            const slots = places(recent.length, this.slots);
            const path = line(recent, slots, most || 1);
            this.lines[index].setAttribute("d", path);
            const isWhole = recent.length > 1 && !recent.includes(null);
            const start = width - ((recent.length - 1) / (slots - 1)) * width;
            this.areas[index].setAttribute(
                "d", isWhole ? `${path}L${width} ${height}L${start.toFixed(1)} ${height}Z` : "");
            setText(this.values[index], this.words(recent.at(-1) ?? null));
        });
    }
}

/** A line without words, for a row of a table. */
export class Spark {
    constructor(count, slots = 60) {
        this.slots = slots;
        this.lines = Array.from(
            { length: count }, (_, index) => drawing("path", { class: `line line-${index}` }));
        this.element = drawing(
            "svg",
            {
                class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
                "aria-hidden": "true",
            },
            ...this.lines);
    }

    show(series) {
        const most = Math.max(...series.flat(), 1);
        series.forEach((values, index) => {
            this.lines[index].setAttribute(
                "d", line(values.slice(-this.slots), places(values.length, this.slots), most));
        });
    }
}

/** How full something became from its begin until now. */
export class FillChart {
    constructor() {
        this.line = drawing("path", { class: "line line-1" });
        this.area = drawing("path", { class: "area line-1" });
        this.element = drawing(
            "svg",
            {
                class: "fill", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
                "aria-hidden": "true",
            },
            this.area, this.line);
    }

    /** `samples`: `{at, value}`, the oldest first. */
    show(samples) {
        if (samples.length < 2) return;
        const most = Math.max(...samples.map(({ value }) => value), 1);
        const [start, end] = [samples[0].at, samples.at(-1).at];
        const points = samples.map(({ at, value }) => {
            const x = end > start ? ((at - start) / (end - start)) * width : width;
            const y = height - 1 - (value / most) * (height - 4);
            return `${x.toFixed(1)} ${y.toFixed(1)}`;
        });
        this.line.setAttribute("d", `M${points.join("L")}`);
        this.area.setAttribute("d", `M${points.join("L")}L${width} ${height}L0 ${height}Z`);
    }
}
