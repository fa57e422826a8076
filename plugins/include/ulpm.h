/* What a program can ask of ULPM. C99 and C++.
 *
 * There is no library to link: the functions look for ULPM in the process, and where it is not, they say so. See
 * docs/plugins.md. */
#ifndef ULPM_H
#define ULPM_H

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What ulpm_checkpoint returns. */
#define ULPM_CHECKPOINTED 1
#define ULPM_RESTARTED 2

/* What ULPM's library knows; new fields go last. Not for programs. */
struct ulpm_program_v1 {
    uint32_t size;
    uint32_t version;
    uint64_t (*job)(void);
    uint64_t (*restarts)(void);
    int (*checkpoint)(int64_t timeout_ms);
    int (*hold)(void);
    int (*release)(void);
};

static inline const struct ulpm_program_v1 *ulpm_find_v1(void)
{
    const struct ulpm_program_v1 *(*find)(void);
    /* RTLD_DEFAULT, which needs _GNU_SOURCE. ISO C has no way from an object's address to a function's. */
    void *found = dlsym((void *)0, "ulpm_program");
    if (!found)
        return (const struct ulpm_program_v1 *)0;
    memcpy(&find, &found, sizeof find);
    return find();
}

/* Makes -errno an error as libc's functions have it. */
static inline int ulpm_result_v1(int result)
{
    if (result >= 0)
        return result;
    errno = -result;
    return -1;
}

/* The id of the job that this process is in; 0 where there is no ULPM. */
static inline uint64_t ulpm_job(void)
{
    const struct ulpm_program_v1 *ulpm = ulpm_find_v1();
    return ulpm ? ulpm->job() : 0;
}

/* Whether this process is in a job of ULPM. */
static inline int ulpm_present(void)
{
    return ulpm_job() != 0;
}

/* How often this process was restarted or has moved; 0 where there is no ULPM. */
static inline uint64_t ulpm_restarts(void)
{
    const struct ulpm_program_v1 *ulpm = ulpm_find_v1();
    return ulpm ? ulpm->restarts() : 0;
}

/* Has the whole job saved, and waits for it: up to `timeout_ms`, or for ever if that is negative.
 *
 * ULPM_CHECKPOINTED: the checkpoint is complete and durable. ULPM_RESTARTED: this process goes on from it, or from one that was
 * taken while it waited. -1 with errno: ENOSYS, there is no ULPM; ETIMEDOUT, it may come later; ECANCELED, it failed, and the
 * coordinator's log says why. Any thread may call it, also several at a time. */
static inline int ulpm_checkpoint(int64_t timeout_ms)
{
    const struct ulpm_program_v1 *ulpm = ulpm_find_v1();
    return ulpm_result_v1(ulpm ? ulpm->checkpoint(timeout_ms) : -ENOSYS);
}

/* Begins a section in which the job is not saved or moved; waits while it is. Sections may be nested. One that goes on for longer than
 * the coordinator waits (10 s) has the checkpoint refused. 0, or -1 with ENOSYS. */
static inline int ulpm_hold(void)
{
    const struct ulpm_program_v1 *ulpm = ulpm_find_v1();
    return ulpm_result_v1(ulpm ? ulpm->hold() : -ENOSYS);
}

/* Ends such a section. 0, or -1 with ENOSYS, or EINVAL where there is none. */
static inline int ulpm_release(void)
{
    const struct ulpm_program_v1 *ulpm = ulpm_find_v1();
    return ulpm_result_v1(ulpm ? ulpm->release() : -ENOSYS);
}

#ifdef __cplusplus
}
#endif

#endif
