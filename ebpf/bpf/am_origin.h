/* SPDX-License-Identifier: GPL-2.0 */
/* Attribution: where in the process an operation came from. Programs of their own, attached after those that decide:
 * a kernel that refuses them keeps every verdict. They run once per first occurrence, else they cost one lookup.
 *
 * Kept as evidence, resolved in user space (ebpf/origin.py): system call number, instruction pointer, stack words.
 * The offsets of pt_regs are the machine's (ebpf/btf.py); a worker thread of io_uring has no user stack.
 */
#ifndef AM_ORIGIN_H
#define AM_ORIGIN_H

#include "am_report.h"

#define AM_PF_IO_WORKER 0x10 /* include/linux/sched.h; workers and the SQPOLL thread */
#define AM_TS_COMPAT 2 /* arch/x86/include/asm/thread_info.h */
#define AM_CHUNK 16 /* words read at a time: the top of a stack may be nearer than AM_STACK_WORDS */

static __always_inline void am_read_stack(struct am_origin *origin)
{
	int i;

#pragma unroll
	for (i = 0; i < AM_STACK_WORDS; i += AM_CHUNK) {
		if (bpf_probe_read_user(&origin->word[i], AM_CHUNK * 8, (void *)(origin->sp + i * 8)))
			return;
		origin->words = i + AM_CHUNK;
	}
}

static __always_inline void am_read_registers(struct am_origin *origin)
{
	void *task = (void *)bpf_get_current_task();
	struct task_struct *typed = (void *)bpf_get_current_task_btf();
	void *regs = (void *)bpf_task_pt_regs(typed);
	__u32 flags = 0;

	origin->nr = ~0ULL;
	bpf_probe_read_kernel(&flags, sizeof(flags), task + AM_TASK_FLAGS);
	if (flags & AM_PF_IO_WORKER) {
		origin->task = AM_TASK_IO_WORKER;
		return;
	}
	bpf_probe_read_kernel(&origin->nr, 8, regs + AM_REGS_NR);
	bpf_probe_read_kernel(&origin->ip, 8, regs + AM_REGS_IP);
	bpf_probe_read_kernel(&origin->sp, 8, regs + AM_REGS_SP);
#ifdef AM_TASK_STATUS
	bpf_probe_read_kernel(&flags, sizeof(flags), task + AM_TASK_STATUS);
	origin->compat = !!(flags & AM_TS_COMPAT);
#endif
	am_read_stack(origin);
}

/* Always lets the operation go on: what was decided stands. */
static __always_inline int am_attribute(void)
{
	__u32 zero = 0;
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct am_pending *pending = am_pending.lookup(&zero);
	struct am_origin *origin;

	if (!pending || !pending->ts_ns || pending->pid_tgid != pid_tgid)
		return 1;
	origin = am_origins.ringbuf_reserve(sizeof(*origin));
	if (!origin) {
		pending->ts_ns = 0;
		am_count_lost(AM_LOST_ORIGIN);
		return 1;
	}
	origin->ts_ns = pending->ts_ns;
	origin->pid = (__u32)pid_tgid;
	origin->tgid = pid_tgid >> 32;
	origin->ip = 0;
	origin->sp = 0;
	origin->words = 0;
	origin->task = AM_TASK_USER;
	origin->compat = 0;
	origin->pad0 = 0;
	origin->path_len = pending->path_len;
	__builtin_memcpy(origin->path, pending->path, AM_PATH_LEN);
	am_read_registers(origin);
	pending->ts_ns = 0;
	am_origins.ringbuf_submit(origin, 0);
	return 1;
}

/* For every hook that has an address; loaded once for each of them. */
int am_by_address(struct bpf_sock_addr *ctx)
{
	return am_attribute();
}

int am_by_create(struct bpf_sock *ctx)
{
	return am_attribute();
}

#endif
