/* SPDX-License-Identifier: MIT */
/*
 * Time per call: the calls are made in CHUNKS equal parts, and the median part
 * counts, so that one interruption by somebody else does not.
 */
#ifndef TIMING_H
#define TIMING_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHUNKS	21

static inline double now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static inline int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Print "name MEDIAN MINIMUM", ns per execution of `call` */
#define MEASURE(name, count, call)					\
	do {								\
		double chunks_[CHUNKS];					\
		long each_ = (count) / CHUNKS + 1;			\
		for (int chunk_ = 0; chunk_ < CHUNKS; chunk_++) {	\
			double start_ = now_ns();			\
			for (long i_ = 0; i_ < each_; i_++) {		\
				call;					\
			}						\
			chunks_[chunk_] = (now_ns() - start_) / (double)each_; \
		}							\
		qsort(chunks_, CHUNKS, sizeof(double), by_value);	\
		printf("%s %.1f %.1f\n", name, chunks_[CHUNKS / 2], chunks_[0]); \
		fflush(stdout);						\
	} while (0)

#endif /* TIMING_H */
