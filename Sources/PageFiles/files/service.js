// What the page asks the service: documents, and events as they come. While the stream of events is
// broken they are asked for, and the page says so.

/** An answer that is none, with its status; 0: nobody answered. */
export class Refusal extends Error {
    constructor(status, message) {
        super(message);
        this.status = status;
    }
}

const timeLimit = 20_000;

/** The document at `path`. */
export async function ask(path) {
    return (await answer(path, "application/json")).json();
}

/** Which service answers, and whether it asked for a token. */
export async function about() {
    const found = await answer("/v1", "application/json");
    return { ...(await found.json()), isLoggedIn: found.headers.has("stillpoint-login") };
}

async function answer(path, type) {
    let response;
    try {
        response = await fetch(path, {
            headers: { accept: type }, signal: AbortSignal.timeout(timeLimit),
        });
    } catch {
        throw new Refusal(0, "the service does not answer");
    }
    if (response.status === 401) location.assign("/login");
    if (!response.ok) {
        const body = await response.json().catch(() => null);
        throw new Refusal(response.status, body?.error?.message ?? response.statusText);
    }
    return response;
}

/**
 * Follows the events after number `after`. `received` is called with each, `changed` with the state of the
 * stream: `live` or `asking`, `restarted` when numbers begin anew and those before mean nothing.
 *
 * A hidden tab closes its connection, and catches up when it is shown again: a browser opens at most six
 * connections to a service, and six tabs with a stream each would leave none for questions.
 */
export class Events {
    static askingSeconds = 5;
    static retrySeconds = 15;
    // Of the service: every kind of event has its own name on the stream.
    static kinds = [
        "taken", "destroyed", "corrupted", "overlay-corrupted", "low-space", "storage-grown",
        "storage-not-erased", "hook-failed", "freeze-failed", "device-attached", "device-detached",
        "block-attached", "block-detached", "device-resized", "device-gone", "origin-replaced",
        "history-new",
    ];

    constructor(after, received, changed, restarted) {
        this.last = after;
        this.received = received;
        this.changed = changed;
        this.restarted = restarted;
        document.addEventListener(
            "visibilitychange", () => (document.hidden ? this.rest() : this.open()));
        if (!document.hidden) this.open();
    }

    rest() {
        this.source?.close();
        clearTimeout(this.retry);
        clearTimeout(this.asking);
        this.asking = null;
    }

    open() {
        clearTimeout(this.retry);
        this.source?.close();
        const source = new EventSource(`/v1/events?after=${this.last}`);
        this.source = source;
        source.onopen = () => {
            clearTimeout(this.asking);
            this.asking = null;
            this.changed("live");
        };
        const take = (message) => this.take(JSON.parse(message.data));
        for (const kind of Events.kinds) source.addEventListener(kind, take);
        source.onerror = () => {
            // A browser tries again by itself, but not after a refusal; this one always does.
            source.close();
            this.changed("asking");
            if (!this.asking) this.askSoon(0);
            this.retry = setTimeout(() => this.open(), Events.retrySeconds * 1000);
        };
    }

    take(event) {
        if (event.number <= this.last) return;
        this.last = event.number;
        this.received(event);
    }

    askSoon(seconds) {
        this.asking = setTimeout(async () => {
            try {
                const found = await answer(
                    `/v1/events?after=${this.last}&follow=false`, "text/event-stream");
                for (const line of (await found.text()).split("\n")) {
                    if (line.startsWith("data: ")) this.take(JSON.parse(line.slice(6)));
                }
            } catch (error) {
                // Numbers of another state directory begin anew.
                if (error.status === 410) {
                    this.last = 0;
                    this.restarted();
                }
            }
            if (this.asking) this.askSoon(Events.askingSeconds);
        }, seconds * 1000);
    }
}

/**
 * Calls `body` again and again, `seconds()` after it ended, while somebody can see the page. The
 * function that is returned calls it at once, or again when it is running.
 */
export function repeat(seconds, body) {
    let timer = null;
    let isRunning = false;
    let isWanted = false;
    const run = async () => {
        clearTimeout(timer);
        isWanted = isRunning;
        if (isRunning || document.hidden) return;
        isRunning = true;
        try {
            await body();
        } finally {
            isRunning = false;
            timer = setTimeout(run, isWanted ? 0 : seconds() * 1000);
        }
    };
    document.addEventListener("visibilitychange", run);
    run();
    return run;
}
