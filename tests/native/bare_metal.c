/* io.h on a Cortex-M without an operating system: start, stop, and files by semihosting. */
#include "io.h"

#include <stdint.h>
#include <string.h>

extern uint32_t stack_bottom[], stack_top[], data_start[], data_end[], data_source[], bss_start[], bss_end[];
int main(void);
void reset(void);

enum { PAINT = 0x5aa5a55a };
enum { OPEN = 1, CLOSE = 2, WRITE0 = 4, WRITE = 5, READ = 6, EXIT_EXTENDED = 0x20 };

static uint32_t host(uint32_t operation, const void *block)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void finish(int status)
{
    const uint32_t block[] = {0x20026, (uint32_t)status};
    host(EXIT_EXTENDED, block);
    for (;;)
        ;
}

static void fault(void)
{
    say("fault\n");
    finish(98);
}

__attribute__((section(".vectors"), used)) static const struct {
    const void *stack;
    void (*handlers[15])(void);
} vectors = {stack_top, {reset, fault, fault, fault, fault, fault, fault}};

void reset(void)
{
    uint32_t *p, *here;
    const uint32_t *source = data_source;
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* the floating-point unit is off */
    __asm__ volatile("dsb\n isb" ::: "memory");
    for (p = data_start; p < data_end;)
        *p++ = *source++;
    for (p = bss_start; p < bss_end;)
        *p++ = 0;
    __asm__ volatile("mov %0, sp" : "=r"(here));
    for (p = stack_bottom; p < here - 32;)
        *p++ = PAINT;
    finish(main());
}

size_t stack_used(void)
{
    const uint32_t *p = stack_bottom;
    while (*p == PAINT)
        ++p;
    return (size_t)(stack_top - p) * 4;
}

static void transfer(const char *name, uint32_t mode, void *data, size_t bytes)
{
    const uint32_t open[] = {(uint32_t)name, mode, (uint32_t)strlen(name)};
    const uint32_t handle = host(OPEN, open);
    const uint32_t block[] = {handle, (uint32_t)data, (uint32_t)bytes};
    if (handle == UINT32_MAX || host(mode == 1 ? READ : WRITE, block) != 0)
        finish(99);
    host(CLOSE, &handle);
}

void load(const char *name, void *data, size_t bytes)
{
    transfer(name, 1, data, bytes);
}

void store(const char *name, const void *data, size_t bytes)
{
    transfer(name, 5, (void *)data, bytes);
}

void say(const char *text)
{
    host(WRITE0, text);
}
