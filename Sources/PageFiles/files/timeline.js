// Checkpoints on an axis of time, and the newest of them as a list.

import { badge, byID, element, keep, setText } from "./elements.js";
import { ago, moment, several } from "./words.js";

const listed = 12;
const dotsMax = 200;

/** Shows all checkpoints; those of `device` stand out. */
export function showCheckpoints(checkpoints, device) {
    byID("no-checkpoints").hidden = checkpoints.length > 0;
    setText(byID("checkpoint-count"), checkpoints.length ? several(checkpoints.length, "checkpoint") : "");
    const newest = checkpoints.toReversed();
    showAxis(newest.slice(0, dotsMax), device);
    keep(
        byID("checkpoint-list"), newest.slice(0, listed), ({ name }) => name,
        (checkpoint) => element(
            "li", {}, element("span", { class: "name" }, checkpoint.name),
            element("span", { class: "muted parts" }), element("span", { class: "badges" }),
            element("time", { class: "muted when", datetime: checkpoint.created_at })),
        (row, checkpoint) => {
            const names = checkpoint.devices.map((part) => part.device);
            const shown = names.slice(0, 3).join(", ");
            setText(
                row.children[1],
                names.length > 3 ? `${shown} and ${names.length - 3} more` : shown);
            const lost = checkpoint.devices.filter(({ usable }) => !usable).length;
            if (row.lost !== lost) {
                row.lost = lost;
                row.children[2].replaceChildren(
                    ...(lost
                        ? [badge(
                            lost === names.length ? "of a former history" : "in part of a former history",
                            "busy", "An increment from here is not possible: make a full copy")]
                        : []));
            }
            setText(row.lastElementChild, ago(checkpoint.created_at));
            row.lastElementChild.title = moment(checkpoint.created_at);
            row.classList.toggle("own", names.includes(device));
        });
}

function showAxis(newest, device) {
    const axis = byID("axis");
    axis.hidden = newest.length < 2;
    if (axis.hidden) return;
    const now = Date.now();
    const first = new Date(newest.at(-1).created_at).getTime();
    const length = Math.max(now - first, 1);
    keep(
        axis, newest, ({ name }) => name,
        (checkpoint) => element("span", { class: "tick", title: checkpoint.name }),
        (tick, checkpoint) => {
            const at = new Date(checkpoint.created_at).getTime();
            tick.style.left = `${((at - first) / length) * 100}%`;
            tick.classList.toggle(
                "own", checkpoint.devices.some((part) => part.device === device));
        });
    axis.dataset.from = ago(newest.at(-1).created_at);
}
