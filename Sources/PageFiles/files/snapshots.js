// The snapshots that are held, and the copies that are made of them.

import { FillChart } from "./chart.js";
import { badge, byID, element, keep, setText } from "./elements.js";
import { ago, bytes, percent, span } from "./words.js";

const kinds = {
    held: "good", prepared: "calm", corrupted: "bad", destroyed: "calm", running: "busy",
    done: "good", failed: "bad", interrupted: "busy", lost: "bad",
};

/**
 * When the storage is full, in words: at the rate of the last minute, `perSecond`, or at that since the cut
 * before there is one.
 */
function outlook({ state, storage }, perSecond) {
    if (state === "corrupted") return "";
    if (storage.estimated_seconds_to_full === null) return "nothing stored yet";
    if (perSecond === 0) return "not filling now";
    const seconds = perSecond === null
        ? storage.estimated_seconds_to_full
        : Math.max(0, storage.limit - storage.stored_bytes) / perSecond;
    const year = 365 * 86_400;
    if (seconds > year) return "full in more than a year at this rate";
    return `full in ${span(seconds)} at this rate`;
}

/** What a device has preserved for a snapshot, and in which of its layers, the oldest first. */
function preserved(part, id, device) {
    const text = `${part.device} ${bytes(part.stored_bytes + part.unstored_bytes)}`;
    const layers = device?.snapshots ?? [];
    return layers.length > 1 && layers.includes(id)
        ? `${text} (layer ${layers.indexOf(id) + 1} of ${layers.length})` : text;
}

export class Snapshots {
    constructor(fills) {
        this.fills = fills;
    }

    /** Takes what `/v1/status` says. */
    show(documents, devices) {
        this.devices = new Map(devices.map((device) => [device.name, device]));
        byID("no-snapshots").hidden = documents.length > 0;
        for (const snapshot of documents) {
            this.fills.add(snapshot.id, snapshot.taken_at, snapshot.storage.stored_bytes);
        }
        this.fills.keepOnly(new Set(documents.map(({ id }) => id)));
        // Those that need somebody come first, then the newest.
        const urgency = ({ state, storage }) => state === "corrupted"
            ? -1 : storage.estimated_seconds_to_full ?? Infinity;
        const sorted = documents.toSorted(
            (left, right) => urgency(left) - urgency(right) || (left.created_at < right.created_at ? 1 : -1));
        keep(
            byID("snapshot-list"), sorted, ({ id }) => id, (snapshot) => this.make(snapshot),
            (card, snapshot) => this.update(card, snapshot));
    }

    make(snapshot) {
        const chart = new FillChart();
        const card = element(
            "li", { class: "snapshot" },
            element(
                "div", { class: "line" },
                element("span", { class: "name" }, snapshot.name ?? snapshot.id.slice(0, 8)),
                element("span", { class: "badges" })),
            element("p", { class: "muted when" }), element("p", { class: "muted devices" }),
            element("div", { class: "plot" }, chart.element),
            element("meter", { min: "0", max: "1", "aria-label": "Storage used" }),
            element(
                "div", { class: "line" }, element("span", { class: "fill-words" }),
                element("span", { class: "muted outlook" })),
            element("p", { class: "fault" }));
        card.chart = chart;
        return card;
    }

    update(card, snapshot) {
        const { storage } = snapshot;
        const find = (name) => card.querySelector(name);
        if (card.state !== snapshot.state) {
            card.state = snapshot.state;
            find(".badges").replaceChildren(badge(snapshot.state, kinds[snapshot.state]));
        }
        const state = snapshot.consistency === "filesystem"
            ? "filesystems frozen" : "as after a power failure";
        setText(
            find(".when"),
            snapshot.taken_at ? `taken ${ago(snapshot.taken_at)}, ${state}` : "not taken yet");
        const parts = snapshot.devices.map(
            (part) => preserved(part, snapshot.id, this.devices.get(part.device)));
        const shown = parts.slice(0, 4).join(", ");
        setText(
            find(".devices"),
            `preserved: ${shown}${parts.length > 4 ? ` and ${parts.length - 4} more` : ""}`);
        const share = storage.limit ? Math.min(1, storage.stored_bytes / storage.limit) : 0;
        const meter = find("meter");
        meter.value = share;
        meter.className = share > 0.9 ? "bad" : share > 0.7 ? "busy" : "";
        setText(
            find(".fill-words"),
            `${bytes(storage.stored_bytes)} of ${bytes(storage.limit)} `
                + `(${percent(storage.stored_bytes, storage.limit)})`);
        setText(find(".outlook"), outlook(snapshot, this.fills.rate(snapshot.id)));
        const faults = snapshot.devices.filter(({ error }) => error)
            .map(({ device, error }) => `${device}: ${error}`);
        setText(find(".fault"), [...faults, ...snapshot.warnings].join(". "));
        card.chart.show(this.fills.of(snapshot.id));
    }
}

/** Shows the copies under way and the last ones. */
export function showCopies(copies) {
    byID("no-copies").hidden = copies.length > 0;
    keep(
        byID("copy-list"), copies.slice(0, 20), ({ id }) => id,
        (copy) => element(
            "li", { class: "copy" },
            element(
                "div", { class: "line" },
                element("span", { class: "name" }, `${copy.device}@${copy.snapshot}`),
                element("span", { class: "badges" }), element("span", { class: "muted when" })),
            element("p", { class: "muted" }),
            element("progress", { max: "1", "aria-label": "Progress" }),
            element("p", { class: "fault" })),
        (row, copy) => {
            if (row.state !== copy.state) {
                row.state = copy.state;
                row.querySelector(".badges").replaceChildren(badge(copy.state, kinds[copy.state]));
            }
            const isRunning = copy.state === "running";
            setText(
                row.querySelector(".when"),
                isRunning ? `began ${ago(copy.started_at)}` : ago(copy.ended_at));
            const kind = copy.since ? `changes since ${copy.since}` : "full copy";
            setText(
                row.querySelector("p"),
                `${kind} to ${copy.target}: ${bytes(copy.copied_bytes)} of ${bytes(copy.bytes)}`);
            const progress = row.querySelector("progress");
            progress.hidden = !isRunning;
            progress.value = copy.bytes ? Math.min(1, copy.copied_bytes / copy.bytes) : 1;
            setText(row.lastElementChild, copy.error ?? "");
        });
}
