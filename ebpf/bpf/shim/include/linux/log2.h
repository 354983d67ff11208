/* SPDX-License-Identifier: GPL-2.0 */
/* Empty: for a macro of bcc that these programs do not use. */
