// What was seen of devices and snapshots since the page was opened: the service keeps no history for
// those who look, so that it costs nothing when nobody does.

const samplesMax = 150;
/** For so long the fill of a snapshot is watched before its rate is that of now. */
const rateSeconds = 60;

function sample(before, after, seconds) {
    const count = after.count - before.count;
    return {
        perSecond: count / seconds,
        bytes: (after.bytes - before.bytes) / seconds,
        latency: count > 0 ? (after.seconds - before.seconds) / count : null,
    };
}

/** Rates of all devices, from one answer to the next. */
export class Rates {
    constructor() {
        this.last = null;
        this.devices = new Map();
    }

    /** Takes an answer of `/v1/activity`. */
    add(activity) {
        const last = this.last;
        this.last = activity;
        const seconds = last ? activity.uptime_seconds - last.uptime_seconds : 0;
        // Another run of the service counts anew.
        if (!last || last.instance !== activity.instance || seconds <= 0) return;
        const before = new Map(last.devices.map((device) => [device.name, device]));
        const seen = new Set();
        for (const device of activity.devices) {
            seen.add(device.name);
            const old = before.get(device.name);
            // Attached anew, it counts anew.
            if (!old || device.reads.count < old.reads.count || device.writes.count < old.writes.count) {
                continue;
            }
            const samples = this.of(device.name);
            samples.push({
                at: Date.now(),
                read: sample(old.reads, device.reads, seconds),
                write: sample(old.writes, device.writes, seconds),
                parked: (device.parked_writes - old.parked_writes) / seconds,
            });
            if (samples.length > samplesMax) samples.shift();
        }
        for (const name of this.devices.keys()) if (!seen.has(name)) this.devices.delete(name);
    }

    /** The samples of a device, the oldest first. */
    of(name) {
        if (!this.devices.has(name)) this.devices.set(name, []);
        return this.devices.get(name);
    }

    /** What a device did last. */
    now(name) {
        return this.of(name).at(-1) ?? null;
    }

    /** Sums over all devices. */
    total() {
        let [read, write] = [0, 0];
        for (const samples of this.devices.values()) {
            read += samples.at(-1)?.read.bytes ?? 0;
            write += samples.at(-1)?.write.bytes ?? 0;
        }
        return { read, write };
    }
}

/** How full the storage of snapshots was. What is known besides: at the cut it was empty. */
export class Fills {
    constructor() {
        this.snapshots = new Map();
    }

    /** Takes what a snapshot has stored, at `now`. */
    add(id, takenAt, storedBytes, now = Date.now()) {
        let samples = this.snapshots.get(id);
        if (!samples) {
            samples = takenAt ? [{ at: new Date(takenAt).getTime(), value: 0 }] : [];
            this.snapshots.set(id, samples);
        }
        samples.push({ at: now, value: storedBytes });
        // The first one is the cut.
        if (samples.length > samplesMax) samples.splice(1, 1);
    }

    of(id) {
        return this.snapshots.get(id) ?? [];
    }

    /** Bytes stored per second of late; null before it was watched for that long. */
    rate(id) {
        // The first sample is the cut, which was not seen.
        const samples = this.of(id).slice(1);
        const newest = samples.at(-1);
        const oldest = samples.findLast(({ at }) => newest.at - at >= rateSeconds * 1000);
        if (!oldest) return null;
        return Math.max(0, (newest.value - oldest.value) / ((newest.at - oldest.at) / 1000));
    }

    /** Forgets those that are not among `ids`. */
    keepOnly(ids) {
        for (const id of this.snapshots.keys()) if (!ids.has(id)) this.snapshots.delete(id);
    }
}
