/* SPDX-License-Identifier: MIT */
/*
 * What path calls answer, by context of the process, form of the path, target and operation: a line for each cell.
 *
 *     context_matrix CONTEXT FOLDER DEV BUS
 *
 * FOLDER holds the targets and OBJECTS, a table of inodes (tests/support/contexts.py makes both). DEV and BUS are
 * folders below /dev and /sys/bus: of an emulated machine, or host folders at the same depth. Paths lead into them and
 * out again, so the expected answers are those of the host. A line is
 *
 *     FORM TARGET OPERATION = ANSWER
 *
 * where ANSWER is the name of an errno or what was found: the object's name in the table, its kind, mode and owner.
 * Calls are made by number: the C library emulates some of them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NOBODY 65534
#define MISSING "missing"

static const char *folder, *dev, *bus;
static const char *form, *target; /* of the cells that are printed */
static char table[1 << 16];

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "context_matrix: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void need_ok(const char *what, long result)
{
	if (result < 0)
		fail(what);
}

static char *text(const char *format, ...)
{
	char *made;
	va_list rest;

	va_start(rest, format);
	if (vasprintf(&made, format, rest) < 0)
		fail("vasprintf");
	va_end(rest);
	return made;
}

/* -- answers ---------------------------------------------------------------------------------------------- */

static void cell(const char *operation, const char *format, ...)
{
	va_list rest;

	printf("%s %s %s = ", form, target, operation);
	va_start(rest, format);
	vprintf(format, rest);
	va_end(rest);
	putchar('\n');
	fflush(stdout);
}

static void answer(const char *operation, long result)
{
	if (result < 0)
		cell(operation, "%s", strerrorname_np(errno));
	else
		cell(operation, "%ld", result);
}

/* The object's name in the table; "new" for one that is not there */
static const char *name_of(dev_t device, ino_t inode)
{
	static char found[256];
	char *at, *key = text("\n%u:%u:%lu ", major(device), minor(device), (unsigned long)inode);

	at = strstr(table, key);
	if (!at)
		return "new";
	at += strlen(key);
	snprintf(found, sizeof(found), "%.*s", (int)strcspn(at, "\n"), at);
	free(key);
	return found;
}

static void identity(const char *operation, const struct stat *about)
{
	cell(operation, "%s mode %o uid %u gid %u", name_of(about->st_dev, about->st_ino), about->st_mode,
	     about->st_uid, about->st_gid);
}

/* What a descriptor leads to; it is closed */
static int opened(const char *operation, int fd)
{
	struct stat about;
	char head[8] = "";

	if (fd < 0) {
		answer(operation, fd);
		return 0;
	}
	need_ok("fstat", fstat(fd, &about));
	identity(operation, &about);
	if (S_ISREG(about.st_mode) && read(fd, head, sizeof(head) - 1) > 0) {
		head[strcspn(head, "\n")] = '\0';
		printf("%s %s %s/contents = %s\n", form, target, operation, head);
		fflush(stdout);
	}
	close(fd);
	return 1;
}

/* -- operations ------------------------------------------------------------------------------------------- */

static void looks(int at, const char *path)
{
	static const struct {
		const char *name;
		int flags;
	} flags[] = { { "open", O_RDONLY },
		      { "open(O_RDWR)", O_RDWR },
		      { "open(O_NOFOLLOW)", O_RDONLY | O_NOFOLLOW },
		      { "open(O_DIRECTORY)", O_RDONLY | O_DIRECTORY },
		      { "open(O_PATH)", O_PATH } };
	static const struct {
		const char *name;
		unsigned long resolve;
	} resolves[] = { { "openat2", 0 },
			 { "openat2(NO_SYMLINKS)", RESOLVE_NO_SYMLINKS },
			 { "openat2(NO_MAGICLINKS)", RESOLVE_NO_MAGICLINKS },
			 { "openat2(BENEATH)", RESOLVE_BENEATH },
			 { "openat2(IN_ROOT)", RESOLVE_IN_ROOT },
			 { "openat2(NO_XDEV)", RESOLVE_NO_XDEV } };
	static const struct {
		const char *name;
		int mode;
	} modes[] = { { "R_OK", R_OK }, { "W_OK", W_OK }, { "X_OK", X_OK } };
	struct statx extended;
	struct statfs system;
	struct stat about;
	char buffer[PATH_MAX];
	ssize_t size;
	int result;

	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
		opened(flags[i].name, syscall(SYS_openat, at, path, flags[i].flags | O_NONBLOCK | O_NOCTTY));
	for (size_t i = 0; i < sizeof(resolves) / sizeof(*resolves); i++) {
		struct open_how how = { .flags = O_RDONLY | O_NONBLOCK, .resolve = resolves[i].resolve };

		opened(resolves[i].name, syscall(SYS_openat2, at, path, &how, sizeof(how)));
	}
	for (int nofollow = 0; nofollow <= 1; nofollow++) {
		result = syscall(SYS_newfstatat, at, path, &about, nofollow ? AT_SYMLINK_NOFOLLOW : 0);
		if (result)
			answer(nofollow ? "lstat" : "stat", result);
		else
			identity(nofollow ? "lstat" : "stat", &about);
	}
	result = syscall(SYS_statx, at, path, 0, STATX_BASIC_STATS, &extended);
	if (result)
		answer("statx", result);
	else
		cell("statx", "%s mode %o uid %u gid %u",
		     name_of(makedev(extended.stx_dev_major, extended.stx_dev_minor), extended.stx_ino),
		     extended.stx_mode, extended.stx_uid, extended.stx_gid);
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		char *name = text("access(%s)", modes[i].name), *effective = text("faccessat2(%s)", modes[i].name);

		answer(name, syscall(SYS_faccessat, at, path, modes[i].mode));
		answer(effective, syscall(SYS_faccessat2, at, path, modes[i].mode, AT_EACCESS));
		free(name);
		free(effective);
	}
	size = syscall(SYS_readlinkat, at, path, buffer, sizeof(buffer) - 1);
	if (size < 0)
		answer("readlink", size);
	else
		cell("readlink", "%zd bytes", strncmp(buffer, "/proc", 5) ? size : -1);
	if (at == AT_FDCWD) {
		answer("statfs", result = syscall(SYS_statfs, path, &system));
		if (!result)
			cell("statfs/type", "%lx", system.f_type);
		size = syscall(SYS_getxattr, path, "user.colour", buffer, sizeof(buffer));
		answer("getxattr", size);
		answer("listxattr", syscall(SYS_listxattr, path, buffer, sizeof(buffer)));
		answer("truncate(-1)", syscall(SYS_truncate, path, -1L));
	}
}

/* In a child: the working folder is not put back */
static void moves(int at, const char *path)
{
	pid_t child = fork();
	char here[PATH_MAX] = "", *end;
	struct stat about;
	int status, fd;

	need_ok("fork", child);
	if (child) {
		need_ok("waitpid", waitpid(child, &status, 0));
		return;
	}
	if (at == AT_FDCWD) {
		answer("chdir", status = syscall(SYS_chdir, path));
	} else {
		fd = syscall(SYS_openat, at, path, O_PATH | O_DIRECTORY);
		answer("fchdir", status = fd < 0 ? fd : syscall(SYS_fchdir, fd));
	}
	if (!status) {
		need_ok("getcwd", syscall(SYS_getcwd, here, sizeof(here)));
		end = strncmp(here, folder, strlen(folder)) ? here : here + strlen(folder);
		cell("getcwd", "%s%s", end == here ? "" : "FOLDER", end);
		if (!stat(".", &about))
			identity("stat(.)", &about);
		if (!stat("..", &about))
			identity("stat(..)", &about);
	}
	_exit(0);
}

/* In a child: it prints who it is */
static void executes(int at, const char *path)
{
	char *words[] = { "said", "say", NULL }, *variables[] = { NULL };
	pid_t child;
	int status;

	printf("%s %s execve = ", form, target);
	fflush(stdout);
	child = fork();
	need_ok("fork", child);
	if (!child) {
		if (at == AT_FDCWD)
			syscall(SYS_execve, path, words, variables);
		else
			syscall(SYS_execveat, at, path, words, variables, 0);
		printf("%s\n", strerrorname_np(errno));
		fflush(stdout);
		_exit(0);
	}
	need_ok("waitpid", waitpid(child, &status, 0));
	cell("execve/status", "%d", status);
}

/* FOLDER/open/new by a path; ``plain`` names it without detours and takes it away again */
static void creates(int at, const char *path, const char *plain)
{
	static const struct {
		const char *name;
		int flags;
	} flags[] = { { "open(O_CREAT)", O_WRONLY | O_CREAT },
		      { "open(O_EXCL)", O_RDWR | O_CREAT | O_EXCL },
		      { "open(O_TRUNC)", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW } };
	struct open_how how = { .flags = O_WRONLY | O_CREAT, .mode = 0640, .resolve = RESOLVE_NO_MAGICLINKS };
	char *other = text("%s.other", path), *plain_other = text("%s.other", plain);
	struct stat about;

	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
		if (opened(flags[i].name, syscall(SYS_openat, at, path, flags[i].flags, 06666)))
			unlink(plain);
	if (opened("openat2(O_CREAT)", syscall(SYS_openat2, at, path, &how, sizeof(how))))
		unlink(plain);
	if (at == AT_FDCWD && opened("creat", syscall(SYS_creat, path, 0777)))
		unlink(plain);
	answer("mkdir", syscall(SYS_mkdirat, at, path, 0777));
	if (!lstat(plain, &about))
		identity("mkdir/made", &about);
	answer("rmdir", syscall(SYS_unlinkat, at, path, AT_REMOVEDIR));
	rmdir(plain);
	answer("mknod", syscall(SYS_mknodat, at, path, S_IFIFO | 0666, 0));
	if (!lstat(plain, &about))
		identity("mknod/made", &about);
	answer("chmod", syscall(SYS_fchmodat, at, path, 0604));
	answer("chown", syscall(SYS_fchownat, at, path, -1, -1, 0));
	answer("utimensat", syscall(SYS_utimensat, at, path, NULL, 0));
	answer("rename", syscall(SYS_renameat2, at, path, at, other, 0));
	if (!lstat(plain_other, &about))
		identity("rename/made", &about);
	answer("link", syscall(SYS_linkat, at, other, at, path, 0));
	answer("unlink", syscall(SYS_unlinkat, at, path, 0));
	unlink(plain);
	unlink(plain_other);
	answer("symlink", syscall(SYS_symlinkat, MISSING, at, path));
	if (!lstat(plain, &about))
		identity("symlink/made", &about);
	unlink(plain);
	free(other);
	free(plain_other);
}

/* -- forms of a path -------------------------------------------------------------------------------------- */

static void all(const char *which, int at, const char *path, const char *plain)
{
	form = which;
	if (!strcmp(target, "open/new")) {
		creates(at, path, plain);
		return;
	}
	looks(at, path);
	moves(at, path);
	if (strstr(target, "exe"))
		executes(at, path);
}

/* In a child whose working folder is ``here`` */
static void from(const char *which, const char *here, const char *path, const char *plain)
{
	pid_t child = fork();
	int status;

	need_ok("fork", child);
	if (!child) {
		form = which;
		status = chdir(here);
		if (status)
			answer("chdir first", status);
		else
			all(which, AT_FDCWD, path, plain);
		_exit(0);
	}
	need_ok("waitpid", waitpid(child, &status, 0));
}

static void with_folder(const char *which, const char *here, const char *path, const char *plain)
{
	int fd = open(here, O_RDONLY | O_DIRECTORY);

	form = which;
	if (fd < 0) {
		answer("open first", fd);
		return;
	}
	all(which, fd, path, plain);
	close(fd);
}

/* By a descriptor of the target itself */
static void by_descriptor(const char *plain)
{
	int fd = open(plain, O_RDONLY | O_NONBLOCK);
	pid_t child;
	int status;

	form = "/dev/fd/N";
	if (fd < 0) {
		answer("open first", fd);
		return;
	}
	child = fork();
	need_ok("fork", child);
	if (!child) {
		need_ok("dup2", dup2(fd, 0));
		all("/dev/stdin", AT_FDCWD, "/dev/stdin", plain);
		all("/dev/fd/N", AT_FDCWD, text("/dev/fd/%d", fd), plain);
		all("/proc/self/fd/N", AT_FDCWD, text("/proc/self/fd/%d", fd), plain);
		all("/proc/thread-self/fd/N", AT_FDCWD, text("/proc/thread-self/fd/%d", fd), plain);
		all("DEV/../fd/N", AT_FDCWD, text("%s/../fd/%d", dev, fd), plain);
		all("BUS/../../../dev/stdin", AT_FDCWD, text("%s/../../../dev/stdin", bus), plain);
		all("/proc/PID/fd/N", AT_FDCWD, text("/proc/%d/fd/%d", getpid(), fd), plain);
		_exit(0);
	}
	need_ok("waitpid", waitpid(child, &status, 0));
	close(fd);
}

static void by_path(const char *plain, const char *within)
{
	char *devices = text("%s/devices", bus);

	all("T", AT_FDCWD, plain, plain);
	all("//T", AT_FDCWD, text("/%s", plain), plain);
	all("DEV/../..T", AT_FDCWD, text("%s/../..%s", dev, plain), plain);
	all("DEV/./../..T", AT_FDCWD, text("%s/.//../..%s", dev, plain), plain);
	all("BUS/../../..T", AT_FDCWD, text("%s/../../..%s", bus, plain), plain);
	all("BUS/devices/../../../..T", AT_FDCWD, text("%s/../../../..%s", devices, plain), plain);
	all("DEV/none/../../..T", AT_FDCWD, text("%s/none/../../..%s", dev, plain), plain);
	all("T/", AT_FDCWD, text("%s/", plain), plain);
	from("cwd=DEV ../..T", dev, text("../..%s", plain), plain);
	from("cwd=BUS/devices ../../../..T", devices, text("../../../..%s", plain), plain);
	from("cwd=DEV T", dev, plain, plain);
	from("cwd=/dev DEV/../..T", "/dev", text(".%s/../..%s", strrchr(dev, '/'), plain), plain);
	with_folder("fd=DEV ../..T", dev, text("../..%s", plain), plain);
	with_folder("fd=BUS/devices ../../../..T", devices, text("../../../..%s", plain), plain);
	with_folder("fd=DEV T", dev, plain, plain);
	with_folder("fd=/ T", "/", plain + 1, plain);
	all("to_dev/../..T", AT_FDCWD, text("%s/to_dev/../..%s", folder, plain), plain);
	all("to_dev_up/..T", AT_FDCWD, text("%s/to_dev_up/..%s", folder, plain), plain);
	all("to_bus_relative/../../..T", AT_FDCWD, text("%s/to_bus_relative/../../..%s", folder, plain), plain);
	all("/proc/self/root/T", AT_FDCWD, text("/proc/self/root%s", plain), plain);
	all("/proc/thread-self/root/T", AT_FDCWD, text("/proc/thread-self/root%s", plain), plain);
	all("/proc/self/root/DEV/../..T", AT_FDCWD, text("/proc/self/root%s/../..%s", dev, plain), plain);
	all("/proc/self/cwd T", AT_FDCWD, text("/proc/self/cwd/../..%s", plain), plain);
	all("/proc/PID/root/T", AT_FDCWD, text("/proc/%d/root%s", getpid(), plain), plain);
	if (within) {
		all("FOLDER/dir/../t", AT_FDCWD, text("%s/dir/../%s", folder, within), plain);
		from("cwd=FOLDER t", folder, within, plain);
		from("cwd=FOLDER/dir ../t", text("%s/dir", folder), text("../%s", within), plain);
		from("cwd=FOLDER /proc/self/cwd/t", folder, text("/proc/self/cwd/%s", within), plain);
		with_folder("fd=FOLDER t", folder, within, plain);
		with_folder("fd=FOLDER/dir ../t", text("%s/dir", folder), text("../%s", within), plain);
		with_folder("fd=FOLDER to_dev/../..T", folder, text("to_dev/../..%s", plain), plain);
		from("cwd=to_dev ../..T", text("%s/to_dev", folder), text("../..%s", plain), plain);
		/* symbolic links to the target itself, plain and through the machine */
		all("link_to/t", AT_FDCWD, text("%s/link_to/%s", folder, within), plain);
		all("link_by_dev/t", AT_FDCWD, text("%s/link_by_dev/%s", folder, within), plain);
		all("link_by_bus/t", AT_FDCWD, text("%s/link_by_bus/%s", folder, within), plain);
	}
	free(devices);
}

/* -- what a process finds about itself ------------------------------------------------------------------------- */

static void own(const char *which, const char *path)
{
	char buffer[PATH_MAX] = "";
	int fd = open(path, O_RDONLY), number;

	form = which;
	target = "self";
	if (fd < 0) {
		answer("stat", fd);
		return;
	}
	need_ok("read", read(fd, buffer, sizeof(buffer) - 1));
	number = atoi(buffer);
	cell("stat", number == getpid() ? "this process" : number == gettid() ? "this thread" : "another");
	close(fd);
}

static void own_link(const char *which, const char *path)
{
	char buffer[PATH_MAX] = "", *end;
	ssize_t size = readlink(path, buffer, sizeof(buffer) - 1);

	form = which;
	target = "self";
	if (size < 0) {
		answer("readlink", size);
		return;
	}
	end = strrchr(buffer, '/') ? strrchr(buffer, '/') + 1 : buffer;
	if (atoi(end) == getpid())
		cell("readlink", "this process");
	else if (atoi(end) == gettid())
		cell("readlink", "this thread");
	else if (atoi(end))
		cell("readlink", "another");
	else
		cell("readlink", "%s", end);
}

static void selves(void)
{
	own("/proc/self/stat", "/proc/self/stat");
	own("/proc/thread-self/stat", "/proc/thread-self/stat");
	own("DEV/../../proc/self/stat", text("%s/../../proc/self/stat", dev));
	own("DEV/../../proc/thread-self/stat", text("%s/../../proc/thread-self/stat", dev));
	own("BUS/../../../proc/self/stat", text("%s/../../../proc/self/stat", bus));
	own("/proc/self/root/proc/self/stat", "/proc/self/root/proc/self/stat");
	own_link("/proc/self", "/proc/self");
	own_link("/proc/thread-self", "/proc/thread-self");
	own_link("DEV/../../proc/self", text("%s/../../proc/self", dev));
	own_link("BUS/../../../proc/thread-self", text("%s/../../../proc/thread-self", bus));
	own_link("/proc/self/root/proc/self/exe", "/proc/self/root/proc/self/exe");
	own_link("DEV/../../proc/self/root", text("%s/../../proc/self/root", dev));
}

/* -- contexts ------------------------------------------------------------------------------------------------ */

static void matrix(void)
{
	static const char *const within[] = { "file", "secret", "theirs", "dir", "link", "dangling",
					      "loop", "exe",	"locked/file", MISSING, "open/new" };

	for (size_t i = 0; i < sizeof(within) / sizeof(*within); i++) {
		char *plain = text("%s/%s", folder, within[i]);

		target = within[i];
		by_path(plain, within[i]);
		if (strcmp(target, "open/new"))
			by_descriptor(plain);
		free(plain);
	}
	target = "/etc/passwd";
	by_path("/etc/passwd", NULL);
	target = "/dev/null";
	by_path("/dev/null", NULL);
	target = "/dev";
	by_path("/dev", NULL);
	selves();
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	need_ok("capget", syscall(SYS_capget, &head, data));
	for (int i = 0; i < 2; i++)
		data[i].effective = 0;
	need_ok("capset", syscall(SYS_capset, &head, data));
}

static void *in_thread(void *unused)
{
	(void)unused;
	need_ok("unshare", unshare(CLONE_FS));
	need_ok("chdir", chdir("/"));
	umask(0);
	matrix();
	return NULL;
}

static void *as_other_thread(void *unused)
{
	(void)unused;
	/* by number, these change the calling thread alone */
	need_ok("setgroups", syscall(SYS_setgroups, 0, NULL));
	need_ok("setresgid", syscall(SYS_setresgid, NOBODY, NOBODY, NOBODY));
	need_ok("setresuid", syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY));
	matrix();
	return NULL;
}

static void own_mounts(void)
{
	need_ok("unshare", unshare(CLONE_NEWNS));
	need_ok("private", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	need_ok("bind", mount(text("%s/theirs", folder), "/etc/passwd", NULL, MS_BIND, NULL));
	need_ok("bind", mount(text("%s/dir", folder), text("%s/locked", folder), NULL, MS_BIND, NULL));
}

static void enter(const char *context)
{
	pthread_t thread;

	if (!strcmp(context, "same")) {
		matrix();
	} else if (!strcmp(context, "umask")) {
		umask(0);
		matrix();
	} else if (!strcmp(context, "umask-077")) {
		umask(077);
		matrix();
	} else if (!strcmp(context, "dropped")) {
		need_ok("setgroups", setgroups(0, NULL));
		need_ok("setgid", setgid(NOBODY));
		need_ok("setuid", setuid(NOBODY));
		matrix();
	} else if (!strcmp(context, "group")) {
		gid_t groups[] = { 12345 }; /* of FOLDER/secret */

		need_ok("setgroups", setgroups(1, groups));
		need_ok("setgid", setgid(NOBODY));
		need_ok("setuid", setuid(NOBODY));
		matrix();
	} else if (!strcmp(context, "effective")) {
		need_ok("setegid", setegid(NOBODY));
		need_ok("seteuid", seteuid(NOBODY));
		matrix();
	} else if (!strcmp(context, "fsuid")) {
		setfsgid(NOBODY);
		setfsuid(NOBODY);
		matrix();
	} else if (!strcmp(context, "no-capabilities")) {
		drop_capabilities();
		matrix();
	} else if (!strcmp(context, "own-mounts")) {
		own_mounts();
		matrix();
	} else if (!strcmp(context, "own-mounts-dropped")) {
		own_mounts();
		need_ok("setuid", setuid(NOBODY));
		matrix();
	} else if (!strcmp(context, "chroot")) {
		need_ok("chroot", chroot(text("%s/root", folder)));
		need_ok("chdir", chdir("/"));
		matrix();
	} else if (!strcmp(context, "thread")) {
		need_ok("pthread_create", pthread_create(&thread, NULL, in_thread, NULL));
		pthread_join(thread, NULL);
	} else if (!strcmp(context, "thread-dropped")) {
		need_ok("pthread_create", pthread_create(&thread, NULL, as_other_thread, NULL));
		pthread_join(thread, NULL);
	} else {
		fprintf(stderr, "context_matrix: there is no context %s\n", context);
		exit(2);
	}
}

static void say(void)
{
	mode_t mask = umask(0);

	printf("%u %u %u %u, umask %o, on behalf of a process of %s\n", getuid(), geteuid(), getgid(), getegid(), mask,
	       getpid() == getsid(0) ? "a session" : "its parent");
}

int main(int argc, char **argv)
{
	FILE *objects;
	size_t size;

	if (argc == 2 && !strcmp(argv[1], "say")) {
		say();
		return 0;
	}
	if (argc != 5) {
		fprintf(stderr, "usage: context_matrix CONTEXT FOLDER DEV BUS\n");
		return 2;
	}
	folder = argv[2];
	dev = argv[3];
	bus = argv[4];
	objects = fopen(text("%s/objects", folder), "r");
	if (!objects)
		fail("objects");
	size = fread(table, 1, sizeof(table) - 1, objects);
	fclose(objects);
	if (!size)
		fail("objects");
	umask(022);
	need_ok("chdir", chdir("/"));
	enter(argv[1]);
	return 0;
}
