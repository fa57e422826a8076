/* The Python module `ulpm`: what a program can ask of ULPM. It works, and says so, where there is no ULPM.
 *
 *   gcc -shared -fPIC -I plugins/include $(python3-config --includes) -o ulpm.so plugins/python/ulpm.c
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ulpm.h"

static PyObject *present(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyBool_FromLong(ulpm_present());
}

static PyObject *job(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong(ulpm_job());
}

static PyObject *restarts(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromUnsignedLongLong(ulpm_restarts());
}

static PyObject *checkpoint(PyObject *self, PyObject *args)
{
    (void)self;
    double seconds = -1;
    if (!PyArg_ParseTuple(args, "|d:checkpoint", &seconds))
        return NULL;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = ulpm_checkpoint(seconds < 0 ? -1 : (int64_t)(seconds * 1000));
    Py_END_ALLOW_THREADS
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyUnicode_FromString(result == ULPM_RESTARTED ? "restarted" : "checkpointed");
}

static PyObject *hold(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    Py_BEGIN_ALLOW_THREADS
    ulpm_hold();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *release(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    ulpm_release();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"present", present, METH_NOARGS, "Whether this process is in a job of ULPM."},
    {"job", job, METH_NOARGS, "The id of the job; 0 without."},
    {"restarts", restarts, METH_NOARGS, "How often this process was restarted or has moved."},
    {"checkpoint", checkpoint, METH_VARARGS,
     "checkpoint([seconds]): has the job saved; 'checkpointed', or 'restarted' where it goes on from an image. OSError "
     "where there is no ULPM (ENOSYS), the time is up, or it failed (ECANCELED)."},
    {"hold", hold, METH_NOARGS, "Begins a section in which the job is not saved; nothing without ULPM."},
    {"release", release, METH_NOARGS, "Ends such a section."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "ulpm", "What a program can ask of ULPM.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_ulpm(void)
{
    return PyModule_Create(&module);
}
