// Events as they come, the newest first, filtered by kind and device.

import { badge, byID, choices, element, keep, setText } from "./elements.js";
import { moment } from "./words.js";

const keptMax = 500;
const shownMax = 100;

/** Kinds that need somebody, and those that somebody may want to know of. */
const loud = {
    corrupted: "bad", "overlay-corrupted": "bad", "device-gone": "bad", "storage-not-erased": "bad",
    "low-space": "busy", "origin-replaced": "busy", "history-new": "busy", "freeze-failed": "busy",
    "hook-failed": "busy",
};

export class EventList {
    constructor() {
        this.events = [];
        this.kind = byID("event-kind");
        this.device = byID("event-device");
        for (const select of [this.kind, this.device]) {
            select.addEventListener("change", () => this.show());
        }
    }

    add(event) {
        this.events.unshift(event);
        if (this.events.length > keptMax) this.events.pop();
        this.showSoon();
    }

    /** Forgets all. */
    clear() {
        this.events = [];
        this.showSoon();
    }

    /** Many events at once are drawn once. */
    showSoon() {
        this.frame ??= requestAnimationFrame(() => {
            this.frame = null;
            this.show();
        });
    }

    show() {
        const options = (values) => [
            { value: "", text: "all" },
            ...[...new Set(values)].sort().map((value) => ({ value, text: value })),
        ];
        choices(this.kind, options(this.events.map(({ type }) => type)));
        choices(
            this.device, options(this.events.map(({ device }) => device).filter(Boolean)));
        const wanted = this.events.filter(
            ({ type, device }) => (!this.kind.value || type === this.kind.value)
                && (!this.device.value || device === this.device.value));
        byID("no-events").hidden = wanted.length > 0;
        keep(
            byID("event-list"), wanted.slice(0, shownMax), ({ number }) => number,
            (event) => element(
                "li", { class: "event" },
                element("time", { class: "muted", datetime: event.time }),
                badge(event.type, loud[event.type] ?? "calm"), element("span", {}, event.message)),
            (row, event) => setText(row.firstElementChild, moment(event.time)));
    }
}
