/* SPDX-License-Identifier: GPL-2.0 */
/* Events: the first occurrence at once through the ring, repeats counted in am_seen until user space flushes it.
 * Nothing here decides: a full ring or an evicted element changes what people see, never a verdict.
 */
#ifndef AM_REPORT_H
#define AM_REPORT_H

#include "am_maps.h"

static __always_inline void am_count_lost(void)
{
	__u32 zero = 0;
	__u64 *lost = am_lost.lookup(&zero);

	if (lost)
		(*lost)++; /* per CPU, migration is off */
}

/* Fills who is asking, then reports `event` unless the same was reported since the last flush. */
static __always_inline void am_report(struct am_event *event)
{
	struct am_seen_key key = {};
	struct am_event *seen;
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	event->pid = (__u32)pid_tgid;
	event->tgid = pid_tgid >> 32;
	event->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(event->comm, sizeof(event->comm));

	key.slot = event->slot;
	key.tgid = event->tgid;
	key.port = event->port;
	key.proto = event->proto;
	key.kind = event->kind;
	key.verdict = event->verdict;
	key.reason = event->reason;
	__builtin_memcpy(key.addr, event->addr, 16);

	seen = am_seen.lookup(&key);
	if (seen) {
		__sync_fetch_and_add(&seen->count, 1);
		return;
	}
	event->count = 0;
	am_seen.update(&key, event);
	event->count = 1;
	if (am_events.ringbuf_output(event, sizeof(*event), 0))
		am_count_lost();
}

#endif
