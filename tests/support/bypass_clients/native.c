/* Connects by ways that no Python guard sees. One source, built three ways by build.py: a shared library (ctypes), a
 * Python extension (-DAM_EXTENSION), and a static program (-DAM_PROGRAM): METHOD HOST PORT.
 *
 * Every method returns 0, or the errno that the kernel gave. io_uring without liburing: io_uring(7).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POLL_IDLE_MS 1000
#define WAIT_ROUNDS 1000 /* of a millisecond */

struct place {
	struct sockaddr_storage address;
	socklen_t length;
};

static int place_of(struct place *place, const char *host, int port)
{
	struct sockaddr_in *v4 = (void *)&place->address;
	struct sockaddr_in6 *v6 = (void *)&place->address;

	memset(place, 0, sizeof(*place));
	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		place->length = sizeof(*v4);
	} else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		place->length = sizeof(*v6);
	} else {
		return EINVAL;
	}
	return 0;
}

static int by_connect(int fd, struct place *place)
{
	return connect(fd, (void *)&place->address, place->length) ? errno : 0;
}

static int by_syscall(int fd, struct place *place)
{
	return syscall(SYS_connect, fd, &place->address, place->length) ? errno : 0;
}

#ifdef __x86_64__
static int by_instruction(int fd, struct place *place)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"((long)SYS_connect), "D"((long)fd), "S"(&place->address), "d"((long)place->length)
			 : "rcx", "r11", "memory");
	return result < 0 ? -result : 0;
}

/* A 32-bit system call of 64-bit code: socketcall(SYS_CONNECT, {fd, address, length}), all below 4 GiB. */
static int by_int80(int fd, struct place *place)
{
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	uint32_t *arguments = (void *)(low + 256);
	long result;

	if (low == MAP_FAILED)
		return errno;
	memcpy(low, &place->address, place->length);
	arguments[0] = fd;
	arguments[1] = (uintptr_t)low;
	arguments[2] = place->length;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "0"(102L), "b"(3L), "c"(arguments)
			 : "r8", "r9", "r10", "r11", "memory");
	munmap(low, 4096);
	return (int)result < 0 ? -(int)result : 0;
}
#endif

/* One IORING_OP_CONNECT. With IORING_SETUP_SQPOLL a kernel thread takes it from the ring by itself; with
 * IOSQE_ASYNC a worker does. */
static int by_uring(int fd, struct place *place, unsigned setup, unsigned char flags)
{
	struct io_uring_params params = {.flags = setup, .sq_thread_idle = POLL_IDLE_MS};
	int ring = syscall(SYS_io_uring_setup, 4, &params);
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqes;
	size_t sq_bytes, cq_bytes;
	unsigned *tail, *sq_flags, *cq_head, *cq_tail;
	char *sq, *cq;
	int round, result = ETIMEDOUT;

	if (ring < 0)
		return errno;
	sq_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
	cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(*cqes);
	sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	sqe = mmap(NULL, params.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
		   IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
		return errno;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_CONNECT;
	sqe->flags = flags;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)&place->address;
	sqe->off = place->length;
	((unsigned *)(sq + params.sq_off.array))[0] = 0;
	tail = (void *)(sq + params.sq_off.tail);
	sq_flags = (void *)(sq + params.sq_off.flags);
	cq_head = (void *)(cq + params.cq_off.head);
	cq_tail = (void *)(cq + params.cq_off.tail);
	cqes = (void *)(cq + params.cq_off.cqes);
	__atomic_store_n(tail, 1, __ATOMIC_SEQ_CST);
	if (!(setup & IORING_SETUP_SQPOLL))
		syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0);
	else if (__atomic_load_n(sq_flags, __ATOMIC_SEQ_CST) & IORING_SQ_NEED_WAKEUP)
		syscall(SYS_io_uring_enter, ring, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0);
	for (round = 0; round < WAIT_ROUNDS && *cq_head == __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE); round++)
		usleep(1000);
	if (*cq_head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE))
		result = -cqes[0].res;
	close(ring);
	return result;
}

static int by_poller(int fd, struct place *place)
{
	return by_uring(fd, place, IORING_SETUP_SQPOLL, 0);
}

static int by_worker(int fd, struct place *place)
{
	return by_uring(fd, place, 0, IOSQE_ASYNC);
}

static int by_ring(int fd, struct place *place)
{
	return by_uring(fd, place, 0, 0);
}

static const struct {
	const char *name;
	int (*connect)(int fd, struct place *place);
} methods[] = {
	{"connect", by_connect},
	{"syscall", by_syscall},
#ifdef __x86_64__
	{"instruction", by_instruction},
	{"int80", by_int80},
#endif
	{"uring", by_ring},
	{"uring-worker", by_worker},
	{"uring-sqpoll", by_poller},
};

/* A TCP connection to HOST (an address) and PORT; 0 or an errno, EINVAL for a method that is not there. */
int bypass_connect(const char *method, const char *host, int port)
{
	struct place place;
	size_t i;
	int fd, result = place_of(&place, host, port);

	if (result)
		return result;
	fd = socket(place.address.ss_family, SOCK_STREAM, 0);
	if (fd < 0)
		return errno;
	result = EINVAL;
	for (i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (!strcmp(methods[i].name, method))
			result = methods[i].connect(fd, &place);
	close(fd);
	return result;
}

#ifdef AM_PROGRAM
int main(int count, char **words)
{
	return count == 4 ? bypass_connect(words[1], words[2], atoi(words[3])) : EINVAL;
}
#endif

#ifdef AM_EXTENSION
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject *extension_connect(PyObject *self, PyObject *arguments)
{
	const char *method, *host;
	int port;

	if (!PyArg_ParseTuple(arguments, "ssi", &method, &host, &port))
		return NULL;
	return PyLong_FromLong(bypass_connect(method, host, port));
}

static PyMethodDef functions[] = {
	{"connect", extension_connect, METH_VARARGS, "connect(method, host, port) -> errno"},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "bypass_extension", NULL, -1, functions};

PyMODINIT_FUNC PyInit_bypass_extension(void)
{
	return PyModule_Create(&module);
}
#endif
