/* A recording as text and as SVG. */
#include "graph/graph_internal.h"

#include <string.h>

static void append_bytes(GString *out, double bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    unsigned u = 0;
    while (bytes >= 1000 && u + 1 < G_N_ELEMENTS(units)) {
        bytes /= 1000;
        u++;
    }
    g_string_append_printf(out, bytes < 10 && u > 0 ? "%.1f %s" : "%.0f %s", bytes, units[u]);
}

static const cs_unit_output *output_of(const cs_recording *r, const cs_forward *f)
{
    return &cs_recording_invocation(r, f->producer)->unit->outputs[f->output];
}

static void text_of_input(GString *out, const cs_recording *r, const cs_invocation_input *input)
{
    const cs_forward *f = cs_recording_forward(r, input->forward);
    const cs_unit_output *o = output_of(r, f);
    g_string_append_printf(out, "      %s <- %u %s.%s  ", input->name, f->producer + 1,
                           cs_recording_invocation(r, f->producer)->unit->name, o->name);
    append_bytes(out, f->bytes);
    g_string_append(out, o->streamed ? ", streamed\n" : "\n");
}

char *cs_recording_to_text(const cs_recording *r)
{
    GString *out = g_string_new(NULL);
    double total = 0;
    for (guint i = 0; i < r->invocations->len; i++) {
        const cs_invocation *call = cs_recording_invocation(r, i);
        g_string_append_printf(out, "%3u  %s  %.0f units", i + 1, call->unit->name, call->units);
        if (call->output_units > 0)
            g_string_append_printf(out, " -> %.0f", call->output_units);
        g_string_append_c(out, '\n');
        for (guint k = 0; k < call->inputs->len; k++) {
            const cs_invocation_input *input = &g_array_index(call->inputs, cs_invocation_input, k);
            text_of_input(out, r, input);
            total += cs_recording_forward(r, input->forward)->bytes;
        }
    }
    for (guint i = 0; i < r->forwards->len; i++) {
        const cs_forward *f = cs_recording_forward(r, i);
        if (f->to_client)
            g_string_append_printf(out, "     client <- %u %s.%s\n", f->producer + 1,
                                   cs_recording_invocation(r, f->producer)->unit->name,
                                   output_of(r, f)->name);
    }
    g_string_append(out, "     between components: ");
    append_bytes(out, total);
    g_string_append_c(out, '\n');
    return g_string_free(out, FALSE);
}

/* --- SVG: columns by depth, rows by order --- */

enum { BOX_WIDTH = 170, BOX_HEIGHT = 46, COLUMN = 300, ROW = 76, MARGIN = 20 };

typedef struct {
    int column, row;
} place;

static place *lay_out(const cs_recording *r, int *n_columns, int *n_rows)
{
    guint n = r->invocations->len;
    place *places = g_new0(place, n + 1);
    g_autofree int *rows = g_new0(int, n + 2);
    *n_columns = *n_rows = 1;
    for (guint i = 0; i < n; i++) { /* inputs come from earlier invocations */
        const cs_invocation *call = cs_recording_invocation(r, i);
        for (guint k = 0; k < call->inputs->len; k++) {
            uint32_t forward = g_array_index(call->inputs, cs_invocation_input, k).forward;
            int before = places[cs_recording_forward(r, forward)->producer].column;
            places[i].column = MAX(places[i].column, before + 1);
        }
        places[i].row = rows[places[i].column]++;
        *n_columns = MAX(*n_columns, places[i].column + 1);
        *n_rows = MAX(*n_rows, places[i].row + 1);
    }
    places[n] = (place){*n_columns, 0}; /* the client */
    return places;
}

static int left(place p)
{
    return MARGIN + p.column * COLUMN;
}

static int middle(place p)
{
    return MARGIN + p.row * ROW + BOX_HEIGHT / 2;
}

static void svg_box(GString *out, place p, const char *name, const char *note)
{
    g_autofree char *safe = g_markup_escape_text(name, -1);
    g_string_append_printf(out,
                           "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\" "
                           "fill=\"#eef3fb\" stroke=\"#35507a\"/>\n"
                           "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">%s</text>\n"
                           "<text x=\"%d\" y=\"%d\" fill=\"#555\">%s</text>\n",
                           left(p), middle(p) - BOX_HEIGHT / 2, BOX_WIDTH, BOX_HEIGHT, left(p) + 10,
                           middle(p) - 4, safe, left(p) + 10, middle(p) + 14, note);
}

static void svg_edge(GString *out, place from, place to, const cs_forward *f,
                     const cs_unit_output *output, unsigned nth)
{
    int x1 = left(from) + BOX_WIDTH, y1 = middle(from), x2 = left(to), y2 = middle(to);
    g_autofree char *safe = g_markup_escape_text(output->name, -1);
    g_string_append_printf(out,
                           "<path d=\"M%d %d C%d %d %d %d %d %d\" fill=\"none\" stroke=\"#35507a\""
                           "%s marker-end=\"url(#arrow)\"/>\n<text x=\"%d\" y=\"%d\" "
                           "font-size=\"10\">%s ",
                           x1, y1, x1 + 60, y1, x2 - 60, y2, x2 - 4, y2,
                           output->streamed ? " stroke-dasharray=\"5 3\"" : "", x1 + 8,
                           y1 - 6 + (int)nth * 12, safe);
    append_bytes(out, f->bytes);
    g_string_append(out, "</text>\n");
}

static void svg_edges(GString *out, const cs_recording *r, const place *places)
{
    guint n = r->invocations->len;
    for (guint i = 0; i < n; i++) {
        const cs_invocation *call = cs_recording_invocation(r, i);
        for (guint k = 0; k < call->inputs->len; k++) {
            uint32_t forward = g_array_index(call->inputs, cs_invocation_input, k).forward;
            const cs_forward *f = cs_recording_forward(r, forward);
            svg_edge(out, places[f->producer], places[i], f, output_of(r, f), f->output);
        }
    }
    for (guint i = 0; i < r->forwards->len; i++) {
        const cs_forward *f = cs_recording_forward(r, i);
        if (f->to_client)
            svg_edge(out, places[f->producer], places[n], f, output_of(r, f), f->output);
    }
}

char *cs_recording_to_svg(const cs_recording *r)
{
    int n_columns, n_rows;
    g_autofree place *places = lay_out(r, &n_columns, &n_rows);
    GString *out = g_string_new(NULL);
    g_string_append_printf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
        "font-family=\"sans-serif\" font-size=\"13\">\n<defs><marker id=\"arrow\" "
        "viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" "
        "orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#35507a\"/></marker></defs>\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
        2 * MARGIN + n_columns * COLUMN + BOX_WIDTH, 2 * MARGIN + n_rows * ROW);
    for (guint i = 0; i < r->invocations->len; i++) {
        const cs_invocation *call = cs_recording_invocation(r, i);
        g_autofree char *note =
            call->output_units > 0
                ? g_strdup_printf("%.0f units, %.0f out", call->units, call->output_units)
                : g_strdup_printf("%.0f units", call->units);
        svg_box(out, places[i], call->unit->name, note);
    }
    svg_box(out, places[r->invocations->len], "client", "");
    svg_edges(out, r, places);
    g_string_append(out, "</svg>\n");
    return g_string_free(out, FALSE);
}
