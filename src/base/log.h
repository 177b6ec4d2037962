/* Log lines on stderr: "2026-01-31T12:00:00.123Z level area: message". Only the loop that ends a
 * piece of work logs; libraries return errors. Thread-safe: one write(2) a line. */
#ifndef CS_BASE_LOG_H
#define CS_BASE_LOG_H

#include <glib.h>
#include <stdbool.h>

typedef enum { CS_LOG_ERROR, CS_LOG_WARN, CS_LOG_INFO, CS_LOG_DEBUG } cs_log_level;

/* Lines above this level are dropped; CS_LOG_INFO at start. */
void cs_log_set_level(cs_log_level level);

/* "error", "warn", "info", "debug"; false for any other word. */
bool cs_log_level_parse(const char *word, cs_log_level *level);

void cs_log(cs_log_level level, const char *area, const char *format, ...) G_GNUC_PRINTF(3, 4);

#endif
