/* SPDX-License-Identifier: MIT */
/*
 * Descriptors that travel over a socket while their sender ends: the files live
 * on in the message, then in the receiver, who may use the device but is not
 * the owner.
 */
#include "session.h"

#include <sys/socket.h>

#define LOCKED	(VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_MM_LOCKED)

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(3 * sizeof(int))];
};

static void send_fds(int socket, const int fds[3])
{
	char byte = 0;
	struct iovec data = { &byte, 1 };
	union control control = { 0 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(3 * sizeof(int));
	memcpy(CMSG_DATA(&control.header), fds, 3 * sizeof(int));
	need(sendmsg(socket, &message, 0));
}

static void receive_fds(int socket, int fds[3])
{
	char byte;
	struct iovec data = { &byte, 1 };
	union control control = { 0 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};

	if (need(recvmsg(socket, &message, 0)) != 1 ||
	    control.header.cmsg_len != CMSG_LEN(3 * sizeof(int)))
		die("no descriptors in the message");
	memcpy(fds, CMSG_DATA(&control.header), 3 * sizeof(int));
}

static void receiver(int socket, int go, int done)
{
	struct session s;
	int fds[3];
	__u64 flags;

	wait_go(go);	/* the sender is dead, the message is all that has the files */
	receive_fds(socket, fds);
	s.group = fds[0];
	s.iommu = fds[1];
	s.device = fds[2];
	s.bar0 = region_offset(s.device, 0);
	s.config = region_offset(s.device, 7);
	check_equal("receiver: register", reg_read(&s, EDU_ID), EDU_ID_VALUE);
	reg_write(&s, EDU_LIVENESS, 0x600d);
	check_equal("receiver: register written", reg_read(&s, EDU_LIVENESS), ~0x600du);
	check_equal("receiver: configuration", get32(s.device, s.config), EDU_VENDOR_DEVICE);
	check_ok("receiver: device ioctl", ioctl(s.device, VFIO_DEVICE_GET_FLAGS, &flags));
	check_ok("receiver: iommu ioctl", ioctl(s.iommu, VFIO_IOMMU_GET_FLAGS, &flags));
	check_errno("receiver: MAP_DMA", dma_map(s.iommu, pages(1), 0x100000, PAGE), EPERM);
	check_equal("receiver: group flags", group_flags(s.group), LOCKED);
	check_errno("receiver: GET_DEVICE_FD", ioctl(s.group, VFIO_GROUP_GET_DEVICE_FD, DEVICE_A),
		    EPERM);
	signal_go(done);
	wait_go(go);
	session_close(&s);
	check_equal("receiver: the last close releases", flags_of(GROUP_A),
		    VFIO_GROUP_FLAGS_VIABLE);
	_exit(0);
}

int main(void)
{
	int sockets[2], go[2], done[2];
	pid_t sends, receives;

	need(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	need(pipe(go));
	need(pipe(done));
	receives = need(fork());
	if (!receives)
		receiver(sockets[1], go[0], done[1]);
	need(close(sockets[1]));
	sends = need(fork());
	if (!sends) {
		struct session s = session_open(GROUP_A, DEVICE_A);

		send_fds(sockets[0], (int[]){ s.group, s.iommu, s.device });
		_exit(0);
	}
	wait_ok("sender ended", sends);
	check_equal("locked while the files are in flight", flags_of(GROUP_A), LOCKED);
	signal_go(go[1]);
	wait_go(done[0]);
	check_equal("locked by the receiver", flags_of(GROUP_A), LOCKED);
	signal_go(go[1]);
	wait_ok("receiver ended", receives);

	/* a message that nobody receives ends with its socket */
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	sends = need(fork());
	if (!sends) {
		struct session s = session_open(GROUP_A, DEVICE_A);

		send_fds(sockets[0], (int[]){ s.group, s.iommu, s.device });
		_exit(0);
	}
	wait_ok("second sender ended", sends);
	check_equal("locked by a message", flags_of(GROUP_A), LOCKED);
	need(close(sockets[0]));
	need(close(sockets[1]));
	check_equal("the socket's end releases", flags_of(GROUP_A), VFIO_GROUP_FLAGS_VIABLE);
	return 0;
}
