#ifndef ERROR_H
#define ERROR_H
/* Ends the program with a message; line 0 leaves the place out. */
_Noreturn void fail(int line, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif
