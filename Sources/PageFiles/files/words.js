// Numbers and times as people read them.

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes with three digits: 512 B, 1.25 MiB, 16 TiB. */
export function bytes(count) {
    let value = count;
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${digits(value, unit === 0)} ${units[unit]}`;
}

/** Bytes per second; nothing is a dash, so that what moves stands out. */
export function rate(perSecond) {
    return perSecond < 1 ? "–" : `${bytes(perSecond)}/s`;
}

/** A number with three digits: 0.52, 3.1, 47, 1,280. */
export function digits(value, isWhole = false) {
    if (isWhole || value >= 100 || value === 0) return Math.round(value).toLocaleString("en");
    const text = value.toFixed(value >= 10 ? 1 : 2);
    return text.replace(/\.?0+$/, "");
}

/** A duration of a request. */
export function latency(seconds) {
    if (seconds === null) return "–";
    if (seconds < 1e-6) return "<1 µs";
    if (seconds < 1e-3) return `${digits(seconds * 1e6)} µs`;
    if (seconds < 1) return `${digits(seconds * 1e3)} ms`;
    return `${digits(seconds)} s`;
}

/** A length of time in one or two units: 40 s, 12 min, 3 h 20 min, 5 d. */
export function span(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return `${whole} s`;
    const minutes = Math.floor(whole / 60);
    if (minutes < 60) return `${minutes} min`;
    const hours = Math.floor(minutes / 60);
    if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
    const days = Math.floor(hours / 24);
    return days < 5 && hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

/** How long ago, or "now". */
export function ago(time, now = Date.now()) {
    const seconds = (now - new Date(time).getTime()) / 1000;
    return seconds < 2 ? "now" : `${span(seconds)} ago`;
}

/** A moment of today as the time of day, of another day with its date. */
export function moment(time) {
    const date = new Date(time);
    const clock = date.toLocaleTimeString("en-GB");
    if (date.toDateString() === new Date().toDateString()) return clock;
    return `${date.toLocaleDateString("en-CA")} ${clock}`;
}

/** A share of a whole: 0.07 %, 12 %. What is more than nothing never reads 0 %. */
export function percent(part, whole) {
    if (whole === 0 || part === 0) return "0 %";
    const value = (part * 100) / whole;
    return value < 0.01 ? "<0.01 %" : `${digits(Math.min(value, 100))} %`;
}

/** One device, two devices. */
export function several(count, one, many = `${one}s`) {
    return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
