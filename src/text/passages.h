/* A text that is read aloud, in passages: as much at a time as a speaker says in one go.
 *
 * A passage ends with a sentence where there is one, else with a clause, else with a word, else
 * between two characters. Full stops of abbreviations, initials, numbers (3.14, "1. Of May") and
 * addresses end no sentence; those of Chinese and Japanese need no space behind them. A single line
 * break may be a wrapped line and ends a clause, an empty line ends a paragraph.
 */
#ifndef CS_TEXT_PASSAGES_H
#define CS_TEXT_PASSAGES_H

#include <glib.h>
#include <stddef.h>

/* What a passage ends with. */
typedef enum {
    CS_PASSAGE_CHARACTER,
    CS_PASSAGE_WORD,
    CS_PASSAGE_CLAUSE,
    CS_PASSAGE_SENTENCE,
    CS_PASSAGE_PARAGRAPH,
} cs_passage_end;

typedef struct {
    char *text; /* without white space around it; something in it can be said */
    cs_passage_end end;
} cs_passage;

/* About how long it takes to say a text of valid UTF-8, in seconds: from characters alone, for any
 * language within a factor of about two. */
double cs_text_spoken_seconds(const char *text, size_t size_bytes);

/* The passages of a NUL-terminated text of valid UTF-8, cs_passage, each of at most so many seconds
 * as estimated above (a passage has at least one character). Empty when nothing can be said:
 * punctuation alone. g_array_unref. */
GArray *cs_passages_of(const char *text, double max_seconds);

#endif
