/* SPDX-License-Identifier: MIT */
/* The ways to name /dev/vfio/240: absolute, relative to the working directory, relative to a descriptor. */
#include "session.h"

#include <dirent.h>
#include <sys/stat.h>

/* Open by a path, see that it is a group, close */
static void opens(const char *name, int directory, const char *path)
{
	int group = openat(directory, path, O_RDWR);

	if (group == -1)
		die("%s: open of \"%s\": %s", name, path, strerror(errno));
	check_equal(name, group_flags(group), VFIO_GROUP_FLAGS_VIABLE);
	need(close(group));
}

static int listed(DIR *directory, const char *name)
{
	struct dirent *entry;

	rewinddir(directory);
	while ((entry = readdir(directory)))
		if (!strcmp(entry->d_name, name))
			return 1;
	return 0;
}

static int in_directory(const char *name)
{
	char here[4096];

	return getcwd(here, sizeof(here)) && !strcmp(here, name);
}

int main(void)
{
	struct stat by_path, by_fd, by_link;
	int directory, group;
	DIR *list;

	opens("absolute", AT_FDCWD, "/dev/vfio/240");
	opens("double slash", AT_FDCWD, "//dev//vfio/240");
	opens("dots", AT_FDCWD, "/dev/./vfio/../vfio/240");
	need(chdir("/dev"));
	opens("chdir /dev", AT_FDCWD, "vfio/240");
	need(chdir("/"));
	opens("chdir /", AT_FDCWD, "dev/vfio/240");
	need(chdir("/tmp"));
	opens("chdir /tmp", AT_FDCWD, "../dev/vfio/240");
	need(chdir("/dev/vfio"));
	opens("chdir /dev/vfio", AT_FDCWD, "240");
	opens("chdir /dev/vfio, with a dot", AT_FDCWD, "./240");
	opens("chdir /dev/vfio, up and down", AT_FDCWD, "../vfio/241");
	check("getcwd in /dev/vfio", in_directory("/dev/vfio"));
	check_ok("from there up to /dev", access("../null", F_OK));
	need(chdir(".."));
	check("getcwd one up", in_directory("/dev"));
	check_ok("/dev is the real one", access("null", R_OK | W_OK));

	directory = need(open("/dev/vfio", O_RDONLY | O_DIRECTORY));
	opens("openat", directory, "240");
	opens("openat, absolute path", directory, "/dev/vfio/240");
	check_ok("fstatat", fstatat(directory, "240", &by_path, 0));
	check_errno("openat of a group that is not", openat(directory, "999", O_RDWR), ENOENT);
	need(close(directory));
	directory = need(open("/dev", O_RDONLY | O_DIRECTORY));
	opens("openat from /dev", directory, "vfio/240");
	need(fchdir(directory));
	opens("fchdir /dev", AT_FDCWD, "vfio/240");
	need(close(directory));

	check_ok("stat", stat("/dev/vfio/240", &by_path));
	check("stat: character device", S_ISCHR(by_path.st_mode));
	check_ok("lstat", lstat("/dev/vfio/240", &by_link));
	check("lstat: the same, no link", S_ISCHR(by_link.st_mode) &&
	      by_link.st_rdev == by_path.st_rdev);
	group = need(open("/dev/vfio/240", O_RDWR));
	check_ok("fstat", fstat(group, &by_fd));
	check("fstat: character device", S_ISCHR(by_fd.st_mode));
	check("fstat: same device number", by_fd.st_rdev == by_path.st_rdev);
	need(close(group));
	need(stat("/dev/vfio/241", &by_link));
	check("another group, another device number", by_link.st_rdev != by_path.st_rdev);
	check_ok("stat of the directory", stat("/dev/vfio", &by_path));
	check("the directory is one", S_ISDIR(by_path.st_mode));

	check_ok("access", access("/dev/vfio/240", R_OK | W_OK));
	check_ok("faccessat", faccessat(AT_FDCWD, "/dev/vfio/241", F_OK, 0));
	check_errno("access to a group that is not", access("/dev/vfio/999", F_OK), ENOENT);
	check_errno("open of a group that is not", open("/dev/vfio/999", O_RDWR), ENOENT);
	check_errno("a group is no directory", open("/dev/vfio/240/x", O_RDWR), ENOTDIR);

	list = opendir("/dev/vfio");
	check("opendir", list != NULL);
	check("readdir: 240", listed(list, "240"));
	check("readdir: 241", listed(list, "241"));
	check("readdir: not 999", !listed(list, "999"));
	closedir(list);
	return 0;
}
