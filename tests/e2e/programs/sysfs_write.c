/* Write a word to a file as a C program does: directly, through a copy on standard output, through writev and stdio. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *result(ssize_t done)
{
	return done < 0 ? strerror(errno) : "OK";
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return fprintf(stderr, "usage: %s FILE WORD\n", argv[0]), 2;
	const char *path = argv[1], *word = argv[2];
	size_t length = strlen(word);
	char back[256] = "";

	int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT, 0644);
	if (fd < 0)
		return perror(path), 1;
	fprintf(stderr, "write: %s\n", result(write(fd, word, length)));

	struct iovec parts[2] = {{(void *)word, 1}, {(void *)(word + 1), length - 1}};
	fprintf(stderr, "writev: %s\n", result(writev(fd, parts, 2)));

	if (dup2(fd, 1) != 1)
		return perror("dup2"), 1;
	fprintf(stderr, "copy: %s\n", result(write(1, word, length)));
	fprintf(stderr, "copy, writev: %s\n", result(writev(1, parts, 2)));
	fprintf(stderr, "copy, lseek: %ld\n", (long)lseek(1, 0, SEEK_SET));
	printf("%s", word);
	fprintf(stderr, "stdio: %s\n", fflush(stdout) ? strerror(errno) : "OK");
	close(1);
	close(fd);

	FILE *file = fopen(path, "r");
	if (file && fgets(back, sizeof back, file))
		fprintf(stderr, "read: %s", back);
	return 0;
}
