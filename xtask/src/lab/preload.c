/* Loaded into user-mode Linux before its own code.
 *
 * 1. Its kernel 6.1 keeps 2.7 kB for a process's extended registers.  Where the processor has more of them (AMX makes
 *    it 11 kB), the host refuses to set a part only and the guest dies at its first instruction.  So that what is set
 *    is laid over what is there.
 * 2. Its helper processes outlive it when it is killed.  So that they ask to be ended with it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Numbers of the kernel's interface; the library's header has them as an enumeration of its own. */
enum { PEEKTEXT = 1, PEEKDATA = 2, PEEKUSR = 3 };
enum { OLDSETOPTIONS = 21, SETOPTIONS = 0x4200, GETREGSET = 0x4204, SETREGSET = 0x4205 };
enum { EXTENDED_REGISTERS = 0x202, END_WITH_TRACER = 0x100000 };

static long kernel(long request, long pid, void *address, void *data)
{
	return syscall(SYS_ptrace, request, pid, address, data);
}

static long set_extended_registers(long pid, const struct iovec *part)
{
	static __attribute__((aligned(64))) unsigned char whole[1 << 16];
	struct iovec all = { whole, sizeof whole };

	if (kernel(GETREGSET, pid, (void *)EXTENDED_REGISTERS, &all) != 0 || all.iov_len <= part->iov_len)
		return kernel(SETREGSET, pid, (void *)EXTENDED_REGISTERS, (void *)part);
	memcpy(whole, part->iov_base, part->iov_len);
	return kernel(SETREGSET, pid, (void *)EXTENDED_REGISTERS, &all);
}

long ptrace(int request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	long pid = va_arg(arguments, int);
	void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
	va_end(arguments);

	switch (request) {
	case PEEKTEXT:
	case PEEKDATA:
	case PEEKUSR: { /* the library returns what the kernel stores */
		long value;
		if (kernel(request, pid, address, &value) < 0)
			return -1;
		errno = 0;
		return value;
	}
	case OLDSETOPTIONS:
	case SETOPTIONS:
		return kernel(SETOPTIONS, pid, address, (void *)((long)data | END_WITH_TRACER));
	case SETREGSET:
		if ((long)address == EXTENDED_REGISTERS)
			return set_extended_registers(pid, data);
	}
	return kernel(request, pid, address, data);
}

struct start {
	int (*function)(void *);
	void *argument;
};

/* One after the other by the one thread that makes helpers; a helper has taken its own before the next is made, or
 * finds it where its predecessors' are not. */
static struct start starts[1024];

static int started(void *argument)
{
	struct start start = *(struct start *)argument;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return start.function(start.argument);
}

int clone(int (*function)(void *), void *stack, int flags, void *argument, ...)
{
	static int (*original)(int (*)(void *), void *, int, void *, ...);
	static unsigned next;

	if (!original)
		original = dlsym(RTLD_NEXT, "clone");
	struct start *start = &starts[next++ % (sizeof starts / sizeof *starts)];
	start->function = function;
	start->argument = argument;
	return original(started, stack, flags, start);
}
