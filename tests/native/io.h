/* What test programs need of the machine: files of the host, text, and an end. */
#ifndef IO_H
#define IO_H

#include <stddef.h>

void load(const char *name, void *data, size_t bytes);
void store(const char *name, const void *data, size_t bytes);
void say(const char *text);
/* The most bytes of stack that were used so far; 0 where nobody knows. */
size_t stack_used(void);

#endif
