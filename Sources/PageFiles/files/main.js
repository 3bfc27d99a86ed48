// The page: what is asked when, and where it is shown.

import { Devices } from "./devices.js";
import { byID, element, facts, keep, setText } from "./elements.js";
import { EventList } from "./events.js";
import { Fills, Rates } from "./history.js";
import { Picture } from "./picture.js";
import { about, ask, Events, repeat } from "./service.js";
import { showCopies, Snapshots } from "./snapshots.js";
import { showCheckpoints } from "./timeline.js";
import { ago, bytes, moment, rate } from "./words.js";

/** Seconds between two questions; with many devices answers are long, and asked for less often. */
const manyDevices = 100;
const activitySeconds = () => (documents.devices > manyDevices ? 5 : 2);
const statusSeconds = 10;
const pictureSeconds = 5;
/** Events of the past that are shown at the begin. */
const eventsShown = 200;

const documents = { devices: 0, checkpoints: [], writes: null };
const rates = new Rates();
const fills = new Fills();
const events = new EventList();
const snapshots = new Snapshots(fills);
const picture = new Picture(() => askPicture(true));
const devices = new Devices(rates, (name) => {
    picture.clear(name);
    documents.writes = null;
    showCheckpoints(documents.checkpoints, name);
    if (name) askPicture(true);
});

// How the service is reached

let stream = "asking";
let silentSince = null;

function showConnection() {
    const place = byID("connection");
    if (silentSince) {
        place.className = "pill bad";
        setText(place, `not reachable since ${moment(silentSince)}`);
    } else if (stream === "live") {
        place.className = "pill good";
        setText(place, "live");
    } else {
        place.className = "pill busy";
        setText(place, `stream lost, asking every ${Events.askingSeconds} s`);
    }
}

/** Runs a question; when nobody answers, the page says so and keeps what it shows. */
async function asking(body) {
    try {
        await body();
        silentSince = null;
    } catch (error) {
        if (error.status === undefined) throw error;
        if (error.status === 0 || error.status >= 500) silentSince ??= new Date();
    }
    showConnection();
}

// What is asked

const askActivity = () => asking(async () => {
    const activity = await ask("/v1/activity");
    rates.add(activity);
    devices.showAllRates();
    const { read, write } = rates.total();
    documents.rates = { read, write, resident: activity.resident_bytes };
    showFigures();
    if (picture.summary && documents.writes !== null) {
        const own = activity.devices.find(({ name }) => name === devices.chosen);
        if (own && own.writes.count !== documents.writes) askPicture(false);
    }
});

const askStatus = () => asking(async () => {
    const [status, health, checkpoints, copies] = await Promise.all(
        ["/v1/status", "/v1/health", "/v1/checkpoints", "/v1/copies"].map(
            // A device that is not served is news, not a failure of the page.
            (path) => ask(path).catch((error) => {
                if (path === "/v1/health" && error.status === 503) return null;
                throw error;
            })));
    documents.devices = status.devices.length;
    documents.status = status;
    documents.checkpoints = checkpoints;
    devices.show(status, checkpoints);
    snapshots.show(status.snapshots, status.devices);
    showCopies(copies);
    showCheckpoints(checkpoints, devices.chosen);
    showService(status, health);
    showFigures();
});

let pictureAskedAt = 0;
let pictureAsked = null;

/** Asks for the picture, at most every few seconds unless `isUrgent`. */
async function askPicture(isUrgent) {
    const name = devices.chosen;
    const now = performance.now();
    if (!name || (!isUrgent && now - pictureAskedAt < pictureSeconds * 1000)) return;
    pictureAskedAt = now;
    const asked = {};
    pictureAsked = asked;
    const isFirst = picture.summary === null;
    try {
        let summary = await ask(picture.query(name));
        // At first the newest checkpoint is the cut: what would the next increment move?
        if (isFirst && summary.checkpoints.length && summary.since.name === "generation") {
            const newest = encodeURIComponent(summary.checkpoints[0].name);
            summary = await ask(`${picture.query(name)}&since=${newest}`);
        }
        // Another device, or another cut, was chosen meanwhile.
        if (pictureAsked !== asked) return;
        picture.show(summary);
        documents.writes = rates.last?.devices.find((device) => device.name === name)?.writes.count ?? 0;
    } catch (error) {
        if (error.status === undefined) throw error;
        if (pictureAsked === asked) picture.fail(error.message);
    }
}

// What is told of the service as a whole

function showService(status, health) {
    setText(byID("service"), `${status.version} on ${location.hostname}`);
    byID("service").title = `process ${status.process_id}, started ${moment(status.started_at)}`;
    const pill = byID("health");
    const state = health?.status ?? "failing";
    pill.hidden = state === "ok";
    pill.className = `pill ${state === "failing" ? "bad" : "busy"}`;
    setText(pill, state);
    const problems = (health?.problems ?? []).map(({ code, name, message }) => ({ key: code + name, message }));
    for (const device of status.devices) {
        if (device.origin_state && device.origin_state !== "present") {
            problems.push({
                key: `origin ${device.name}`,
                message: `the origin of device ${device.name} is ${device.origin_state}`,
            });
        }
    }
    keep(
        byID("problems"), problems.slice(0, 10), ({ key }) => key,
        () => element("p", { class: "notice" }), (row, { message }) => setText(row, message));
}

function showFigures() {
    const { status, rates: now } = documents;
    if (!status) return;
    const held = status.snapshots.filter(({ state }) => state === "held").length;
    const corrupted = status.snapshots.filter(({ state }) => state === "corrupted").length;
    const newest = documents.checkpoints.at(-1);
    facts(byID("figures"), [
        ["Devices", status.devices.length.toLocaleString("en")],
        ["Capacity", bytes(status.devices.reduce((sum, { size }) => sum + size, 0))],
        ["Reading", now ? rate(now.read) : "–"],
        ["Writing", now ? rate(now.write) : "–"],
        ["Snapshots", [
            held || !corrupted ? `${held} held` : "", corrupted ? `${corrupted} corrupted` : "",
        ].filter(Boolean).join(", ")],
        ["Newest checkpoint", newest ? ago(newest.created_at) : "none"],
        ["Memory", bytes(now?.resident ?? status.memory.resident_bytes)],
    ]);
}

// The begin

/**
 * What is to be done when an event says that something has changed; several at once are one change.
 * The service may give an answer again that is younger than a second, so it is asked twice.
 */
function whenChanged(body) {
    let timers = [];
    return () => {
        for (const timer of timers) clearTimeout(timer);
        timers = [200, 1300].map((milliseconds) => setTimeout(body, milliseconds));
    };
}

async function begin() {
    const service = await about();
    // Devices are drawn before anything else is asked for.
    const status = repeat(() => statusSeconds, askStatus);
    repeat(activitySeconds, askActivity);
    const changed = whenChanged(async () => {
        // The list of devices comes first, so that no picture is asked of a device that is gone.
        await status();
        await askPicture(true);
    });
    const after = Math.max(0, service.last_event - eventsShown);
    new Events(
        after,
        (event) => {
            events.add(event);
            if (event.number > service.last_event) changed();
        },
        (state) => {
            stream = state;
            showConnection();
        },
        () => events.clear());
    if (service.isLoggedIn) byID("leave").hidden = false;
}

async function beginWithRetries() {
    try {
        await begin();
    } catch (error) {
        if (error.status === undefined) throw error;
        silentSince ??= new Date();
        showConnection();
        setTimeout(beginWithRetries, 3000);
    }
}

beginWithRetries();
