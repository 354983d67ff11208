/* SPDX-License-Identifier: GPL-2.0 */
/* Empty: bcc brings its own copy of this header. */
