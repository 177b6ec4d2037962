#include "base/log.h"

#include <string.h>
#include <unistd.h>

static const char *const level_words[] = {"error", "warn", "info", "debug"};
static int max_level = CS_LOG_INFO;

void cs_log_set_level(cs_log_level level)
{
    g_atomic_int_set(&max_level, (int)level);
}

bool cs_log_level_parse(const char *word, cs_log_level *level)
{
    for (size_t i = 0; i < G_N_ELEMENTS(level_words); i++) {
        if (strcmp(word, level_words[i]) == 0) {
            *level = (cs_log_level)i;
            return true;
        }
    }
    return false;
}

/* A message may carry bytes of a request: control characters (those of C0 and C1) must not forge
 * lines or drive a terminal. */
static void mask_control_characters(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = ' ';
        if ((unsigned char)text[0] == 0xC2 && (unsigned char)text[1] < 0xA0)
            text[0] = text[1] = ' ';
    }
}

void cs_log(cs_log_level level, const char *area, const char *format, ...)
{
    if ((int)level > g_atomic_int_get(&max_level))
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *raw = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *message = g_utf8_make_valid(raw, -1);
    mask_control_characters(message);

    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *stamp = g_date_time_format(now, "%Y-%m-%dT%H:%M:%S");
    g_autofree char *line =
        g_strdup_printf("%s.%03dZ %s %s: %s\n", stamp, g_date_time_get_microsecond(now) / 1000,
                        level_words[level], area, message);
    ssize_t written = write(STDERR_FILENO, line, strlen(line));
    (void)written; /* nowhere to report a log that cannot be written */
}
