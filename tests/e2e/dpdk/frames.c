/* Sends frames of every size and content through a port that loops them back, and compares each that returns.
 *
 * frames EAL-OPTIONS -- COUNT. Prints the number of frames and of mistakes; status 0 if there was none.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define PORT 0
#define IN_FLIGHT 96
#define BURST 32
#define SMALLEST 60
#define LARGEST 1514
#define SILENCE 10 /* seconds without a frame */

static void must(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "frames: %s failed\n", what);
		exit(1);
	}
}

static unsigned size_of(unsigned n)
{
	return SMALLEST + n * 37 % (LARGEST - SMALLEST + 1);
}

static unsigned char byte_of(unsigned n, unsigned at)
{
	return (unsigned char)(n * 2654435761u >> (at % 4 * 8)) ^ (unsigned char)at;
}

static struct rte_mbuf *make(struct rte_mempool *pool, unsigned n)
{
	struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
	must(m != NULL, "rte_pktmbuf_alloc");
	unsigned char *data = (unsigned char *)rte_pktmbuf_append(m, size_of(n));
	must(data != NULL, "rte_pktmbuf_append");
	for (unsigned at = 0; at < size_of(n); at++)
		data[at] = byte_of(n, at);
	return m;
}

static int is(struct rte_mbuf *m, unsigned n)
{
	const unsigned char *data = rte_pktmbuf_mtod(m, const unsigned char *);
	if (rte_pktmbuf_data_len(m) != size_of(n) || rte_pktmbuf_pkt_len(m) != size_of(n))
		return 0;
	for (unsigned at = 0; at < size_of(n); at++)
		if (data[at] != byte_of(n, at))
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);
	must(used >= 0, "rte_eal_init");
	must(argc - used == 2, "COUNT: reading it");
	unsigned count = strtoul(argv[used + 1], NULL, 0);
	must(rte_eth_dev_count_avail() == 1, "rte_eth_dev_count_avail: one port");

	struct rte_eth_conf conf = {0};
	struct rte_mempool *pool = rte_pktmbuf_pool_create("frames", 1023, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	must(pool != NULL, "rte_pktmbuf_pool_create");
	must(rte_eth_dev_configure(PORT, 1, 1, &conf) == 0, "rte_eth_dev_configure");
	must(rte_eth_rx_queue_setup(PORT, 0, 128, SOCKET_ID_ANY, NULL, pool) == 0, "rte_eth_rx_queue_setup");
	must(rte_eth_tx_queue_setup(PORT, 0, 128, SOCKET_ID_ANY, NULL) == 0, "rte_eth_tx_queue_setup");
	must(rte_eth_dev_start(PORT) == 0, "rte_eth_dev_start");

	unsigned sent = 0, got = 0, wrong = 0;
	uint64_t heard = rte_get_timer_cycles();
	while (got < count) {
		struct rte_mbuf *burst[BURST];
		unsigned n = 0;
		while (n < BURST && sent + n < count && sent + n - got < IN_FLIGHT) {
			burst[n] = make(pool, sent + n);
			n++;
		}
		unsigned taken = rte_eth_tx_burst(PORT, 0, burst, n);
		for (unsigned i = taken; i < n; i++)
			rte_pktmbuf_free(burst[i]);
		sent += taken;
		n = rte_eth_rx_burst(PORT, 0, burst, BURST);
		for (unsigned i = 0; i < n; i++) {
			wrong += !is(burst[i], got++);
			rte_pktmbuf_free(burst[i]);
		}
		if (n)
			heard = rte_get_timer_cycles();
		must(rte_get_timer_cycles() - heard < SILENCE * rte_get_timer_hz(), "waiting for a frame");
	}
	struct rte_eth_stats stats;
	must(rte_eth_stats_get(PORT, &stats) == 0, "rte_eth_stats_get");
	printf("%u frames, %u wrong, %lu sent, %lu received\n", got, wrong, stats.opackets, stats.ipackets);
	must(rte_eth_dev_stop(PORT) == 0, "rte_eth_dev_stop");
	must(rte_eth_dev_close(PORT) == 0, "rte_eth_dev_close");
	must(rte_eal_cleanup() == 0, "rte_eal_cleanup");
	return wrong != 0;
}
