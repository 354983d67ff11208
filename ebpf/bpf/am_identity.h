/* SPDX-License-Identifier: GPL-2.0 */
/* Who is asking: the bottle of the current task, by its ancestor cgroup. */
#ifndef AM_IDENTITY_H
#define AM_IDENTITY_H

#include "am_maps.h"

static __always_inline int am_has_feature(__u64 feature)
{
	__u32 zero = 0;
	struct am_config *config = am_config.lookup(&zero);

	return config && (config->features & feature);
}

static __always_inline int am_logs_allowed(void)
{
	__u32 zero = 0;
	struct am_config *config = am_config.lookup(&zero);

	return config && (config->flags & AM_CONFIG_LOG_ALLOWED);
}

/* Copies the element of cgroup `id`; 1 when it is there. An element freed under a reader may come back for another
 * bottle before the copy is complete: the copy names its key, and is taken again when it is not ours. */
static __always_inline int am_copy_bottle(struct am_bottle *out, __u64 id)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < 3; i++) {
		struct am_bottle *bottle = am_bottle.lookup(&id);

		if (!bottle)
			return 0;
		__builtin_memcpy(out, bottle, sizeof(*out));
		if (out->cgroup_id == id)
			return 1;
		__builtin_memset(out, 0, sizeof(*out));
	}
	return 0;
}

/* Finds the bottle by the ancestor cgroup at the bottles' level, so that child cgroups change nothing. Cgroups that
 * others made (a container's, a CI runner's) may be at any level: the innermost that is known counts. */
static __always_inline void am_find_bottle(struct am_bottle *out)
{
	__u32 zero = 0;
	struct am_config *config = am_config.lookup(&zero);
	__u64 id;
	int level;

	if (!config)
		return;
	id = bpf_get_current_ancestor_cgroup_id(config->bottle_level);
	if (id && am_copy_bottle(out, id) && !(out->flags & AM_BOTTLE_ATTACHED))
		return;
	if (!(config->flags & AM_CONFIG_ATTACHED))
		return;
	for (level = AM_LEVELS; level > 0; level--) {
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (id && am_copy_bottle(out, id))
			return;
	}
}

#endif
