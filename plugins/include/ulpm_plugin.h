/* What a plugin and ULPM agree on. C99 and C++; the Rust crate `ulpm-plugin` is the same to the byte.
 *
 * A plugin is a shared object that exports one `struct ulpm_plugin` under the name `ulpm_plugin`. It is loaded into
 * every process of the job, before the program begins, by `ulpm_launch --plugin PATH`. See docs/plugins.md.
 *
 * Every structure begins with its size, new fields go last, and a number is never used again for something else. A
 * plugin is called for events that it asks for, and no others.
 */
#ifndef ULPM_PLUGIN_H
#define ULPM_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface: raised when something that was there changes its meaning. */
#define ULPM_PLUGIN_ABI 1

/* Events. Where a plugin is called:
 *  Helper   a thread of the process that runs plugins only; all of libc may be called, while the program runs.
 *           A callback that crashes gets no more events in this process; one that takes longer than its deadline has
 *           the checkpoint refused. The program goes on in both cases.
 *  Program  the thread of the program that makes the call; what POSIX permits there. A crash is the program's.
 *  Manager  a thread without libc, while every other thread stands still: system calls only, no libc, no lock, no
 *           thread-local storage. A crash ends the process.
 * In the order of the command line; those with (back) in the opposite order. */
enum {
    ULPM_EVENT_INIT = 1,             /* Program: the program is about to begin, or was just executed */
    ULPM_EVENT_EXIT = 2,             /* Program (back): it ends by exit(3) */
    ULPM_EVENT_THREAD_START = 3,     /* Program: in the new thread */
    ULPM_EVENT_THREAD_EXIT = 4,      /* Program (back): in the thread that ends */
    ULPM_EVENT_FORK_PARENT = 5,      /* Program: fork(3) has made `child` */
    ULPM_EVENT_FORK_CHILD = 6,       /* Program: in the child of fork(3) */
    ULPM_EVENT_BEFORE_EXEC = 7,      /* Program: about to execute `path`; async-signal-safe calls only */
    ULPM_EVENT_AFTER_EXEC = 8,       /* Program: in the new program, after INIT */
    ULPM_EVENT_EXEC_FAILED = 9,      /* Program (back): the old program goes on; as BEFORE_EXEC */
    ULPM_EVENT_PRE_FREEZE = 10,      /* Helper: about to be saved; not 0 is a veto, with a text in `reason` */
    ULPM_EVENT_FROZEN = 11,          /* Manager: every thread of this process stands still */
    ULPM_EVENT_THAW_CHECKPOINT = 12, /* Helper (back): the checkpoint's content is fixed, the program goes on */
    ULPM_EVENT_THAW_RESTART = 13,    /* Helper (back): the program goes on from an image */
    ULPM_EVENT_THAW_ABORT = 14,      /* Helper (back): there is no checkpoint; only if PRE_FREEZE was called */
    ULPM_EVENT_PRE_MIGRATE = 15,     /* Helper: about to move, before PRE_FREEZE; may veto */
    ULPM_EVENT_POST_MIGRATE = 16,    /* Helper (back): on another host, after THAW_RESTART */
    ULPM_EVENT_RESTORED = 17         /* Manager (back): made from an image, nobody goes on yet */
};

/* The bit of an event in `ulpm_plugin.events`. */
#define ULPM_EVENT_BIT(event) (UINT64_C(1) << (event))

/* What happens. */
struct ulpm_event {
    uint32_t size;        /* bytes of this structure */
    uint32_t number;      /* ULPM_EVENT_… */
    int32_t pid;          /* the process, as the program knows it */
    int32_t child;        /* FORK_PARENT: the child, as the program knows it */
    int64_t deadline_ns;  /* by when to return, in CLOCK_MONOTONIC nanoseconds; 0 for no time */
    const char *path;     /* BEFORE_EXEC, EXEC_FAILED: the program, or null */
    char *reason;         /* where a veto writes why, NUL-terminated; null where there is no veto */
    uint64_t reason_size; /* bytes that fit there, with the NUL */
};

/* What ULPM does for a plugin. Valid as long as the process; each function takes this structure first. */
struct ulpm_services {
    uint32_t size; /* bytes of this structure */
    uint32_t abi;  /* ULPM_PLUGIN_ABI */
    /* Adds a line to the log that `ulpm_launch --plugin-log FILE` names; does nothing without. In any event. */
    void (*log)(const struct ulpm_services *self, const char *text);
    /* Reads a variable of the environment that the job was last restarted in (that of ulpm_restart): its length, or -1 if
     * there is none or the job was never restarted. As much as fits is stored, NUL-terminated. In any event. */
    int64_t (*restart_variable)(const struct ulpm_services *self, const char *name, char *buffer, uint64_t size);
    /* Changes a variable of the program's environment while all its threads stand still; null takes it away. 0, or -1 if
     * there is no memory. Only in RESTORED. */
    int (*set_variable)(const struct ulpm_services *self, const char *name, const char *value);
    /* Asks for a checkpoint of the job, which comes when it can. 0, or -1 outside of a job. In any event. */
    int (*wish_checkpoint)(const struct ulpm_services *self);
    /* Sets the plugin's section of the image, with a version: what `ulpm_command --inspect` shows, and others may read. The
     * memory is read when the process is saved, and stays the plugin's; it needs no section for itself, for all its memory
     * comes back with the process. 0, or -1 for more than 1 MiB. In any event. */
    int (*set_section)(const struct ulpm_services *self, uint32_t version, const void *data, uint64_t size);
};

/* `ulpm_plugin.flags`: a checkpoint is restarted only where the plugin's file is. Without, a warning is given: programs
 * that the job executes there go without it. */
#define ULPM_PLUGIN_REQUIRED 1u

/* What is called for an event: 0 is success. C++ exceptions must not leave it. */
typedef int (*ulpm_callback)(const struct ulpm_event *event, const struct ulpm_services *services);

/* What a plugin exports, under the name `ulpm_plugin`. */
struct ulpm_plugin {
    uint32_t size;          /* sizeof(struct ulpm_plugin) */
    uint32_t abi;           /* ULPM_PLUGIN_ABI */
    const char *name;       /* for messages */
    const char *version;    /* for messages */
    uint64_t events;        /* ULPM_EVENT_BIT of those that it wants */
    uint32_t deadline_ms;   /* how long each callback on the helper thread may take; 0 for 2000 */
    uint32_t flags;         /* ULPM_PLUGIN_REQUIRED or 0 */
    ulpm_callback callback; /* what is called */
};

#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
extern const struct ulpm_plugin ulpm_plugin;

#ifdef __cplusplus
}
#endif

#endif
