#include "PageFiles.h"

#include <stddef.h>

// The compiler embeds the files as they are: they stay readable sources, and are built anew when
// they change. SwiftPM's resources would be files beside the program, and its `embedInCode` writes
// every byte as a number for the Swift compiler to read.
#pragma clang diagnostic ignored "-Wc23-extensions"

static const unsigned char index_html[] = {
#embed "files/index.html"
};
static const unsigned char login_html[] = {
#embed "files/login.html"
};
static const unsigned char page_css[] = {
#embed "files/page.css"
};
static const unsigned char icon_svg[] = {
#embed "files/icon.svg"
};
static const unsigned char main_js[] = {
#embed "files/main.js"
};
static const unsigned char service_js[] = {
#embed "files/service.js"
};
static const unsigned char history_js[] = {
#embed "files/history.js"
};
static const unsigned char words_js[] = {
#embed "files/words.js"
};
static const unsigned char elements_js[] = {
#embed "files/elements.js"
};
static const unsigned char chart_js[] = {
#embed "files/chart.js"
};
static const unsigned char picture_js[] = {
#embed "files/picture.js"
};
static const unsigned char devices_js[] = {
#embed "files/devices.js"
};
static const unsigned char snapshots_js[] = {
#embed "files/snapshots.js"
};
static const unsigned char timeline_js[] = {
#embed "files/timeline.js"
};
static const unsigned char events_js[] = {
#embed "files/events.js"
};

#define HTML "text/html; charset=utf-8"
#define SCRIPT "text/javascript; charset=utf-8"

static const struct page_file files[] = {
    {"/", HTML, index_html, sizeof index_html},
    {"/login", HTML, login_html, sizeof login_html},
    {"/page.css", "text/css; charset=utf-8", page_css, sizeof page_css},
    {"/icon.svg", "image/svg+xml", icon_svg, sizeof icon_svg},
    {"/main.js", SCRIPT, main_js, sizeof main_js},
    {"/service.js", SCRIPT, service_js, sizeof service_js},
    {"/history.js", SCRIPT, history_js, sizeof history_js},
    {"/words.js", SCRIPT, words_js, sizeof words_js},
    {"/elements.js", SCRIPT, elements_js, sizeof elements_js},
    {"/chart.js", SCRIPT, chart_js, sizeof chart_js},
    {"/picture.js", SCRIPT, picture_js, sizeof picture_js},
    {"/devices.js", SCRIPT, devices_js, sizeof devices_js},
    {"/snapshots.js", SCRIPT, snapshots_js, sizeof snapshots_js},
    {"/timeline.js", SCRIPT, timeline_js, sizeof timeline_js},
    {"/events.js", SCRIPT, events_js, sizeof events_js},
};

const struct page_file *page_file_at(unsigned long index)
{
    return index < sizeof files / sizeof files[0] ? &files[index] : NULL;
}
