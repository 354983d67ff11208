/* SPDX-License-Identifier: GPL-2.0 */
/* Events: the first occurrence at once through the ring, repeats counted in am_seen until user space flushes it.
 * Nothing here decides: a full ring or an evicted element changes what people see, never a verdict.
 */
#ifndef AM_REPORT_H
#define AM_REPORT_H

#include "am_identity.h"

static __always_inline void am_count_lost(__u32 what)
{
	__u64 *lost = am_lost.lookup(&what);

	if (lost)
		(*lost)++; /* per CPU, migration is off */
}

/* Leaves word for the attribution program of the same hook, which runs next on this CPU. Its element, or NULL. */
static __always_inline struct am_pending *am_leave_word(__u64 ts_ns, __u64 pid_tgid)
{
	__u32 zero = 0;
	struct am_pending *pending = am_pending.lookup(&zero);

	if (!pending)
		return 0;
	pending->pid_tgid = 0; /* first and last: a task in between leaves its own word whole, or none */
	pending->ts_ns = ts_ns;
	pending->path_len = 0;
	pending->pid_tgid = pid_tgid;
	return pending;
}

/* What the bottle and the clock say of an operation; the rest is the hook's. */
static __always_inline void am_begin(struct am_event *event, const struct am_bottle *bottle, __u64 now_ns)
{
	event->ts_ns = now_ns;
	event->cgroup_id = bottle->cgroup_id;
	event->slot = bottle->slot;
	event->epoch = bottle->epoch;
}

static __always_inline void am_fill_who(struct am_event *event, __u64 pid_tgid)
{
	event->pid = (__u32)pid_tgid;
	event->tgid = pid_tgid >> 32;
	event->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

/* Puts `event` into the ring. The word left for attribution, or NULL when nothing attributes or the ring is full. */
static __always_inline struct am_pending *am_emit(struct am_event *event, __u64 pid_tgid, int attributed)
{
	struct am_pending *pending = 0;

	event->count = 1;
	if (attributed && am_has_feature(AM_FEATURE_ORIGIN))
		pending = am_leave_word(event->ts_ns, pid_tgid);
	event->origin = pending ? AM_ORIGIN_FOLLOWS : AM_ORIGIN_NONE;
	if (am_events.ringbuf_output(event, sizeof(*event), 0)) {
		am_count_lost(AM_LOST_EVENT);
		if (pending)
			pending->ts_ns = 0;
		return 0;
	}
	return pending;
}

/* Reports `event` also when the same was reported a moment ago: user space tells such operations apart. */
static __always_inline void am_report_each(struct am_event *event)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	am_fill_who(event, pid_tgid);
	am_emit(event, pid_tgid, 1);
}

/* Fills who is asking, then reports `event` unless the same was reported since the last flush. `attributed`: the hook has
 * a program for that. The word left for it, or NULL when this was a repeat or nothing attributes. */
static __always_inline struct am_pending *am_report_if_new(struct am_event *event, int attributed)
{
	struct am_seen_key key = {};
	struct am_event *seen;
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	am_fill_who(event, pid_tgid);

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
		return 0;
	}
	event->count = 0;
	am_seen.update(&key, event);
	return am_emit(event, pid_tgid, attributed);
}

static __always_inline struct am_pending *am_report(struct am_event *event)
{
	return am_report_if_new(event, 1);
}

#endif
