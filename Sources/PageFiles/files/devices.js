// The devices: a table of all, and one of them in full.

import { Chart, Spark } from "./chart.js";
import { badge, byID, element, facts, keep, setText } from "./elements.js";
import { ago, bytes, digits, latency, rate, several } from "./words.js";

/** From so many devices on the list can be filtered. */
const filteredFrom = 9;

/** What is to be said of a device's history, and how loud. `checkpoints`: its own, the newest last. */
function historyOf(device, checkpoints) {
    if (!device.history) return { text: "not answering", kind: "bad", why: null };
    const why = device.history_reason;
    // An increment can begin at the newest cut, or a full backup is due.
    if (checkpoints.length && !checkpoints.at(-1).usable) {
        return { text: "new, full backup due", kind: "busy", why };
    }
    if (device.history === "continued") return { text: "continued", kind: "good", why };
    return { text: "new", kind: "calm", why };
}

/** The weighted latency of reads and writes. */
function latencyOf(sample) {
    const parts = [sample.read, sample.write].filter((part) => part.latency !== null);
    const count = parts.reduce((sum, part) => sum + part.perSecond, 0);
    if (!count) return null;
    return parts.reduce((sum, part) => sum + part.latency * part.perSecond, 0) / count;
}

export class Devices {
    constructor(rates, choose) {
        this.rates = rates;
        this.choose = choose;
        this.documents = [];
        this.blocks = [];
        this.cuts = new Map();
        this.chosen = null;
        this.visible = new Set();
        this.filter = byID("device-filter").querySelector("input");
        this.filter.addEventListener("input", () => this.showTable());
        // Rows that nobody sees are not drawn: there may be hundreds.
        this.watcher = new IntersectionObserver((changes) => {
            for (const change of changes) {
                if (change.isIntersecting) {
                    this.visible.add(change.target);
                    this.showRates(change.target);
                } else {
                    this.visible.delete(change.target);
                }
            }
        });
        this.charts = [
            new Chart("Throughput", ["read", "write"], rate),
            new Chart("Requests", ["read", "write"],
                (value) => (value === null ? "–" : `${digits(value)}/s`)),
            new Chart("Latency", ["read", "write"], latency),
        ];
        byID("charts").append(...this.charts.map((chart) => chart.element));
    }

    /** Takes what `/v1/status` and `/v1/checkpoints` say. */
    show(status, checkpoints) {
        this.documents = status.devices;
        this.blocks = status.blocks;
        this.cuts = new Map(status.devices.map(({ name }) => [name, []]));
        for (const checkpoint of checkpoints) {
            for (const part of checkpoint.devices) this.cuts.get(part.device)?.push(part);
        }
        byID("no-devices").hidden = this.documents.length > 0;
        byID("device-table").hidden = this.documents.length === 0;
        byID("device-filter").hidden = this.documents.length < filteredFrom;
        this.showTable();
        const isThere = this.documents.some((device) => device.name === this.chosen);
        if (!isThere) this.select(this.documents[0]?.name ?? null);
        this.showDevice();
    }

    showTable() {
        const wanted = this.filter.value.trim().toLowerCase();
        const shown = this.documents.filter(
            (device) => device.name.toLowerCase().includes(wanted));
        keep(
            byID("device-table").tBodies[0], shown, (device) => device.name,
            (device) => this.makeRow(device), (row, device) => this.updateRow(row, device));
    }

    makeRow(device) {
        const button = element("button", { class: "link", type: "button" }, device.name);
        button.addEventListener("click", () => this.select(device.name, true));
        const spark = new Spark(2);
        const row = element(
            "tr", {}, element("th", { scope: "row" }, button),
            element("td", { class: "number wide" }), element("td", { class: "history" }),
            element("td", { class: "number" }), element("td", { class: "number" }),
            element("td", { class: "number wide" }), element("td", { class: "wide" }, spark.element),
            element("td", { class: "number wide" }));
        row.device = device.name;
        row.spark = spark;
        row.button = button;
        this.watcher.observe(row);
        return row;
    }

    updateRow(row, device) {
        const cells = row.cells;
        setText(cells[1], bytes(device.size));
        const history = historyOf(device, this.cuts.get(device.name));
        if (row.history !== history.text) {
            row.history = history.text;
            cells[2].replaceChildren(badge(history.text, history.kind, history.why));
        }
        setText(cells[7], device.connections ? device.connections.toLocaleString("en") : "–");
        row.classList.toggle("chosen", device.name === this.chosen);
        row.button.setAttribute("aria-pressed", device.name === this.chosen ? "true" : "false");
    }

    /** New rates are there. */
    showAllRates() {
        for (const row of this.visible) this.showRates(row);
        this.showCharts();
    }

    showRates(row) {
        const samples = this.rates.of(row.device);
        const now = samples.at(-1);
        setText(row.cells[3], now ? rate(now.read.bytes) : "–");
        setText(row.cells[4], now ? rate(now.write.bytes) : "–");
        setText(row.cells[5], now ? latency(latencyOf(now)) : "–");
        row.spark.show([
            samples.map(({ read }) => read.bytes), samples.map(({ write }) => write.bytes),
        ]);
    }

    select(name, byHand = false) {
        if (name === this.chosen) return;
        this.chosen = name;
        byID("device").hidden = name === null;
        for (const row of byID("device-table").tBodies[0].rows) {
            row.classList.toggle("chosen", row.device === name);
            row.button.setAttribute("aria-pressed", row.device === name ? "true" : "false");
        }
        this.choose(name);
        this.showDevice();
        this.showCharts();
        if (byHand && matchMedia("(max-width: 63rem)").matches) {
            byID("device").scrollIntoView({ block: "start" });
        }
    }

    showDevice() {
        const device = this.documents.find(({ name }) => name === this.chosen);
        if (!device) return;
        setText(byID("device-title"), device.name);
        const history = historyOf(device, this.cuts.get(device.name));
        const badges = [
            { text: `history ${history.text}`, kind: history.kind },
            { text: device.mode === "live" ? "tracked in use" : "served", kind: "calm" },
        ];
        if (device.read_only) badges.push({ text: "read-only", kind: "calm" });
        if (device.origin_state && device.origin_state !== "present") {
            badges.push({ text: `origin ${device.origin_state}`, kind: "bad" });
        }
        keep(
            byID("device-badges"), badges, ({ text }) => text,
            ({ text, kind }) => badge(text, kind), () => {});
        facts(byID("device-facts"), [
            ["Origin", device.path],
            ["Size", bytes(device.size)],
            ["History", device.history_reason ?? ""],
            ["Attached", ago(device.attached_at)],
            ["Used by", this.usersOf(device)],
        ]);
    }

    usersOf(device) {
        const own = this.blocks.filter(({ target }) => target === device.name);
        const nbd = Math.max(0, device.connections - own.length);
        const words = nbd ? [several(nbd, "NBD connection")] : [];
        for (const block of own) {
            words.push(
                block.users.length ? `${block.path} (${block.users.join(", ")})` : block.path);
        }
        return words.join("; ") || "nobody";
    }

    showCharts() {
        const samples = this.chosen ? this.rates.of(this.chosen) : [];
        const [throughput, requests, latencies] = this.charts;
        const series = (value) => [
            samples.map(({ read }) => value(read)), samples.map(({ write }) => value(write)),
        ];
        throughput.show(series(({ bytes: count }) => count));
        requests.show(series(({ perSecond }) => perSecond));
        latencies.show(series(({ latency: seconds }) => seconds));
    }
}
