/* SPDX-License-Identifier: GPL-2.0 */
/* Being guarded over the life of a process: fork passes it on before the child runs, exec and the last thread's exit
 * end it. Raw tracepoints of include/trace/events/sched.h; they see every process of the host, so that they do one
 * lookup and go. The offsets of task_struct come from the kernel's own BTF (ebpf/btf.py).
 */
#ifndef AM_PROCESS_H
#define AM_PROCESS_H

#include "am_report.h"

/* TP_PROTO(struct task_struct *parent, struct task_struct *child), called before the child is woken. */
int am_fork(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32, child = 0;
	struct am_guarded *guarded = am_guarded.lookup(&tgid);
	struct am_guarded copy;

	if (!guarded)
		return 0;
	if (bpf_probe_read_kernel(&child, sizeof(child), (void *)ctx->args[1] + AM_TASK_TGID) || child == tgid)
		return 0; /* a thread */
	__builtin_memcpy(&copy, guarded, sizeof(copy));
	if (am_guarded.update(&child, &copy))
		am_count_lost(AM_LOST_GUARDED);
	return 0;
}

int am_exec(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	am_guarded.delete(&tgid);
	return 0;
}

/* TP_PROTO(struct task_struct *task, …): signal->live has been counted down already (kernel/exit.c). */
int am_exit(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	void *signal = 0;
	int live = 0;

	if (!am_guarded.lookup(&tgid))
		return 0;
	if (bpf_probe_read_kernel(&signal, sizeof(signal), (void *)ctx->args[0] + AM_TASK_SIGNAL) ||
	    bpf_probe_read_kernel(&live, sizeof(live), signal + AM_SIGNAL_LIVE) || live)
		return 0;
	am_guarded.delete(&tgid);
	return 0;
}

#endif
