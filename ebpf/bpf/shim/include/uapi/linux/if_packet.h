/* SPDX-License-Identifier: GPL-2.0 */
/* Empty: for declarations of bcc that these programs do not use. */
