/* SPDX-License-Identifier: MIT */
/* Files that have nothing to do with VFIO are what they are without the runner. */
#include "session.h"

#include <sys/stat.h>

#define FILES	40
#define ROUNDS	4000

static char directory[] = "/tmp/uvfio-opens-XXXXXX";

static void content_of(int number, char *text, size_t size)
{
	snprintf(text, size, "file %d of %d: %x\n", number, FILES, number * 2654435761u);
}

static void read_back(int number)
{
	char wanted[64], got[64], name[32];
	struct stat about;
	int fd;

	content_of(number, wanted, sizeof(wanted));
	snprintf(name, sizeof(name), "file-%d", number);
	fd = need(open(name, O_RDONLY | O_CLOEXEC));
	memset(got, 0, sizeof(got));
	if (read(fd, got, sizeof(got)) != (ssize_t)strlen(wanted) || strcmp(got, wanted))
		die("%s: read \"%s\", not \"%s\"", name, got, wanted);
	memset(got, 0, sizeof(got));
	if (pread(fd, got, 4, 5) != 4 || memcmp(got, wanted + 5, 4))
		die("%s: pread", name);
	if (fcntl(fd, F_GETFD) != FD_CLOEXEC)
		die("%s: close-on-exec is lost", name);
	need(fstat(fd, &about));
	if (!S_ISREG(about.st_mode) || about.st_size != (off_t)strlen(wanted))
		die("%s: fstat", name);
	need(close(fd));
	need(stat(name, &about));
	if (!S_ISREG(about.st_mode) || about.st_size != (off_t)strlen(wanted))
		die("%s: stat", name);
}

int main(void)
{
	char text[64], name[32], target[64], byte = 'x';
	struct stat about;
	int fd, numbers[3];

	if (!mkdtemp(directory))
		die("mkdtemp: %s", strerror(errno));
	need(chdir(directory));
	for (int i = 0; i < FILES; i++) {
		content_of(i, text, sizeof(text));
		snprintf(name, sizeof(name), "file-%d", i);
		fd = need(open(name, O_WRONLY | O_CREAT | O_EXCL, 0640));
		if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
			die("write: %s", strerror(errno));
		need(close(fd));
	}
	pass("files written");
	for (int i = 0; i < ROUNDS; i++)
		read_back(i * 7 % FILES);
	pass("thousands of opens, reads and stats");

	check_errno("O_EXCL on what exists", open("file-0", O_WRONLY | O_CREAT | O_EXCL, 0600), EEXIST);
	check_errno("what is not there", open("file-none", O_RDONLY), ENOENT);
	check_errno("a file is no directory", open("file-0/x", O_RDONLY), ENOTDIR);
	check_errno("stat of what is not there", stat("file-none", &about), ENOENT);
	check_errno("a path that is no string", open((const char *)8, O_RDONLY), EFAULT);
	check_errno("an empty path", open("", O_RDONLY), ENOENT);
	need(umask(027));
	fd = need(open("masked", O_RDWR | O_CREAT, 0666));
	need(fstat(fd, &about));
	check_equal("mode and umask", about.st_mode & 0777, 0640);
	need(close(fd));
	need(symlink("file-3", "link"));
	memset(target, 0, sizeof(target));
	check_equal("readlink", need(readlink("link", target, sizeof(target))), 6);
	check("its target", !strcmp(target, "file-3"));
	check_errno("O_NOFOLLOW", open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
	need(lstat("link", &about));
	check("lstat", S_ISLNK(about.st_mode));
	fd = need(open("/dev/null", O_RDWR));
	need(fstat(fd, &about));
	check("/dev/null", S_ISCHR(about.st_mode) && write(fd, &byte, 1) == 1 &&
	      read(fd, &byte, 1) == 0);
	check_errno("ioctl of another type", ioctl(fd, _IO('!', 1)), ENOTTY);
	check_errno("a VFIO request to a file that is not VFIO's", ioctl(fd, _IO(';', 116)), ENOTTY);
	need(close(fd));
	check_errno("a VFIO request to nothing", ioctl(fd, _IO(';', 116)), EBADF);

	/* the lowest free number, as ever */
	for (int i = 0; i < 3; i++)
		numbers[i] = need(open("file-0", O_RDONLY));
	need(close(numbers[1]));
	check_equal("the lowest free descriptor", need(open("file-1", O_RDONLY)), numbers[1]);

	/* offsets beyond a terabyte belong to devices only when a device is behind the number */
	fd = need(open("sparse", O_RDWR | O_CREAT, 0600));
	check_equal("pwrite at 2 TiB", need(pwrite(fd, "far", 4, (off_t)2 << 40)), 4);
	memset(text, 0, sizeof(text));
	check_equal("pread at 2 TiB", need(pread(fd, text, 4, (off_t)2 << 40)), 4);
	check("what was written", !strcmp(text, "far"));
	check_equal("pread beyond the end", need(pread(fd, text, 4, (off_t)3 << 40)), 0);
	need(close(fd));

	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "file-%d", i);
		need(unlink(name));
	}
	need(unlink("masked"));
	need(unlink("link"));
	need(unlink("sparse"));
	need(chdir("/"));
	check_ok("cleaned up", rmdir(directory));
	return 0;
}
