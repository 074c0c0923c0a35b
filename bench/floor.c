/* SPDX-License-Identifier: MIT */
/*
 * floor PROGRAM [ARG...]: the smallest supervisor that can answer a trapped read.
 *
 * It has no devices and no files: every pread() of 4 bytes at an offset of
 * 2^40 or more, on whatever descriptor, reads the same constant. That is one
 * notification, one write to the program's memory, one answer: what no
 * supervisor made this way can be faster than.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV	/* Linux 5.19 */
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV	(1UL << 5)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS		/* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS		_IOW('!', 4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP	(1UL << 0)
#endif

#define ANSWER	0x010000edu

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(125);
}

/* The arguments are 64 bits wide, the filter looks at 32: the high half says "2^40 or more" */
static int install_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_pread64, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3]) + 4),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 1u << (40 - 32), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("PR_SET_NO_NEW_PRIVS");
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER |
			    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
}

static void pass_fd(int socket, int *fd, int receive)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	if (receive) {
		if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1 || !message.msg_controllen)
			fail("no listener (Linux 5.19 or later is needed)");
		memcpy(fd, CMSG_DATA(&control.header), sizeof(int));
		return;
	}
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), fd, sizeof(int));
	if (sendmsg(socket, &message, 0) != 1)
		fail("sendmsg");
}

/*
 * RECV fails with ENOENT when whoever asked is gone: killed, or ended altogether.
 * Then, and only then, it is worth a call to find out which.
 */
static int all_gone(int listener)
{
	struct pollfd wait = { .fd = listener, .events = POLLIN };

	return poll(&wait, 1, -1) == 1 && wait.revents & POLLHUP;
}

static void serve(int listener)
{
	struct seccomp_notif request;
	struct seccomp_notif_resp response;
	const uint32_t answer = ANSWER;
	uint32_t pid = 0;
	int memory = -1;

	for (;;) {
		char path[32];

		memset(&request, 0, sizeof(request));
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request)) {
			if (errno == ENOENT && all_gone(listener))
				return;
			if (errno != EINTR && errno != ENOENT)
				fail("RECV");
			continue;
		}
		if (request.pid != pid) {
			close(memory);
			pid = request.pid;
			snprintf(path, sizeof(path), "/proc/%u/mem", pid);
			memory = open(path, O_RDWR | O_CLOEXEC);
		}
		memset(&response, 0, sizeof(response));
		response.id = request.id;
		response.val = sizeof(answer);
		if (pwrite(memory, &answer, sizeof(answer), (off_t)request.data.args[1]) !=
		    sizeof(answer)) {
			response.val = 0;
			response.error = -EFAULT;
		}
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) && errno != ENOENT)
			fail("SEND");
	}
}

int main(int argc, char **argv)
{
	int sockets[2], listener, status;
	pid_t child;

	if (argc < 2) {
		fprintf(stderr, "usage: floor PROGRAM [ARG...]\n");
		return 2;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets))
		fail("socketpair");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child) {
		listener = install_filter();
		if (listener < 0)
			fail("seccomp");
		pass_fd(sockets[1], &listener, 0);
		close(listener);
		execvp(argv[1], argv + 1);
		fail(argv[1]);
	}
	close(sockets[1]);
	pass_fd(sockets[0], &listener, 1);
	/* the waker hands its CPU over; without it (before Linux 6.6) a trap costs twice as much */
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP))
		fprintf(stderr, "floor: no synchronous wake-up on this kernel\n");
	serve(listener);
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return 125;
	return WEXITSTATUS(status);
}
