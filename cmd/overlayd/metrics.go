package main

import (
	"context"
	"math"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// namespace starts the name of every metric of ours.
const namespace = "overlayd"

// collectTimeout bounds the reading of the data plane for one scrape. It is
// shorter than Prometheus' usual timeout of 10 s.
const collectTimeout = 8 * time.Second

// requestMetrics measures what plugins ask for.
type requestMetrics struct {
	durations *prometheus.HistogramVec
	failures  *prometheus.CounterVec
}

func newRequestMetrics() *requestMetrics {
	return &requestMetrics{
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "request_duration_seconds",
			Help: "Time to answer a request of a plugin, by operation.",
			// From a warm attach of some milliseconds to the kubelet's patience.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
		}, []string{"op"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "request_errors_total",
			Help: "Requests answered with an error, by operation and code.",
		}, []string{"op", "code"}),
	}
}

// observe counts one answer; code is empty for a success. Only the operations
// of a sandbox's life have a histogram: the rest is too rare or too quick.
func (m *requestMetrics) observe(op string, took time.Duration, code shim.Code) {
	switch op {
	case (*shim.AttachContainer)(nil).Op(), (*shim.DetachContainer)(nil).Op(),
		(*shim.CheckContainer)(nil).Op(), (*shim.GCContainers)(nil).Op():
		m.durations.WithLabelValues(op).Observe(took.Seconds())
	}
	if code != "" {
		m.failures.WithLabelValues(op, string(code)).Inc()
	}
}

// newRegistry returns the metrics of this process: no other registry is used.
func newRegistry(d *daemon) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "1, labelled with the version of this daemon.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "go_version": runtime.Version()},
	})
	build.Set(1)
	registry.MustRegister(
		build, d.requests.durations, d.requests.failures, newPlaneCollector(d), newNATCollector(d.plane.NATStatus), newDNSCollector(d.plane.DNSStatus),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// planeCollector reads the data plane at every scrape, so that no number is
// older than the scrape.
type planeCollector struct {
	daemon *daemon
	descs  planeDescs
}

// planeDescs describes the metrics that planeCollector reads.
type planeDescs struct {
	ready, nodeSet, incomplete, tombstones *prometheus.Desc
	device, mtu                            *prometheus.Desc
	peers, refused, handshake, rx, tx      *prometheus.Desc
	unhealthy, roundTrip                   *prometheus.Desc
	services, servicePeers, guests         *prometheus.Desc
	attachments                            *prometheus.Desc
	poolCapacity, poolUsed, poolResting    *prometheus.Desc
	droppedPackets, droppedBytes           *prometheus.Desc
	apiCurrent, apiWrites, nodeProblems    *prometheus.Desc
}

func newPlaneCollector(d *daemon) *planeCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &planeCollector{daemon: d, descs: planeDescs{
		ready:          desc("ready", "1 if sandboxes can be attached."),
		nodeSet:        desc("node_set_in_force", "1 if the nodes as the nodes file or the API server has them now are in force, 0 while the last good set is."),
		incomplete:     desc("scrape_incomplete", "1 if a part of the data plane could not be read for this scrape."),
		tombstones:     desc("late_detaches_total", "Sandboxes detached because they were deleted while no daemon could be reached."),
		device:         desc("device_info", "1, labelled with the WireGuard device and what runs it.", "device", "backend"),
		mtu:            desc("device_mtu_bytes", "MTU of the WireGuard device."),
		peers:          desc("peers", "Peers of the WireGuard device."),
		refused:        desc("nodes_refused", "Nodes that are no peers because something about them is wrong."),
		handshake:      desc("peer_last_handshake_age_seconds", "Time since the last handshake with a peer, +Inf if there was none.", "node"),
		rx:             desc("peer_receive_bytes_total", "Encrypted bytes received from a peer since it was added.", "node"),
		tx:             desc("peer_transmit_bytes_total", "Encrypted bytes sent to a peer since it was added.", "node"),
		unhealthy:      desc("peer_unhealthy", "1 if what is sent to a peer has no answer, or a probe had none.", "device", "node"),
		roundTrip:      desc("peer_round_trip_seconds", "Round trip of the last probe of a peer that was answered.", "device", "node"),
		services:       desc("service_up", "1 if a dedicated service of this node is up, labelled with its device.", "service", "device"),
		servicePeers:   desc("service_peers", "Peers of a dedicated service's device.", "service"),
		guests:         desc("guests", "Guests of this node."),
		attachments:    desc("attachments", "Sandboxes on a segment.", "segment"),
		poolCapacity:   desc("pool_addresses", "Addresses of a slice that sandboxes can have.", "slice"),
		poolUsed:       desc("pool_addresses_used", "Addresses of a slice that sandboxes have.", "slice"),
		poolResting:    desc("pool_addresses_resting", "Addresses of a slice that were freed and not yet given out again.", "slice"),
		droppedPackets: desc("firewall_dropped_packets_total", "Packets dropped by our firewall, by reason.", "reason"),
		droppedBytes:   desc("firewall_dropped_bytes_total", "Bytes dropped by our firewall, by reason.", "reason"),
		apiCurrent:     desc("api_server_reachable", "1 if what is watched at the API server is up to date."),
		apiWrites:      desc("api_server_writes_total", "Requests to the API server that were to change something."),
		nodeProblems:   desc("node_problems", "Nodes with something wrong, by the reason of the Event.", "reason"),
	}}
}

// Describe implements prometheus.Collector.
func (c *planeCollector) Describe(into chan<- *prometheus.Desc) {
	d := c.descs
	for _, desc := range []*prometheus.Desc{
		d.ready, d.nodeSet, d.incomplete, d.tombstones, d.device, d.mtu, d.peers, d.refused, d.handshake,
		d.rx, d.tx, d.unhealthy, d.roundTrip, d.services, d.servicePeers, d.guests, d.attachments, d.poolCapacity, d.poolUsed, d.poolResting, d.droppedPackets, d.droppedBytes,
		d.apiCurrent, d.apiWrites, d.nodeProblems,
	} {
		into <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *planeCollector) Collect(into chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	status, err := c.daemon.plane.Status(ctx)
	s := sender{into}
	s.gauge(c.descs.incomplete, boolValue(err != nil))
	s.gauge(c.descs.ready, boolValue(len(c.daemon.waiting()) == 0))
	s.gauge(c.descs.nodeSet, boolValue(c.daemon.nodes.InForce()))
	s.counter(c.descs.tombstones, float64(c.daemon.graves.drained.Load()))
	c.collectDevice(s, status.Device)
	s.gauge(c.descs.refused, float64(len(status.Problems)))
	for _, segment := range status.Segments {
		s.gauge(c.descs.attachments, float64(segment.Ports), segment.Name)
	}
	for _, pool := range status.Pools {
		slice := pool.Prefix.String()
		s.gauge(c.descs.poolCapacity, float64(pool.Capacity), slice)
		s.gauge(c.descs.poolUsed, float64(pool.Used), slice)
		s.gauge(c.descs.poolResting, float64(pool.Resting), slice)
	}
	c.collectServices(s, status)
	c.collectCluster(s)
	for reason, counter := range status.Firewall {
		s.counter(c.descs.droppedPackets, float64(counter.Packets), reason)
		s.counter(c.descs.droppedBytes, float64(counter.Bytes), reason)
	}
}

// collectServices adds services and guests, and how the peers of all devices do.
func (c *planeCollector) collectServices(s sender, status dataplane.Status) {
	s.gauge(c.descs.guests, float64(len(status.Guests)))
	for _, service := range status.Services {
		if service.Mode == dataplane.Dedicated {
			s.gauge(c.descs.services, boolValue(service.Fault == nil), service.Name, service.Device.Device)
			s.gauge(c.descs.servicePeers, float64(len(service.Device.Peers)), service.Name)
		}
	}
	for device, peers := range status.Health {
		for _, peer := range peers {
			if peer.Node == "" {
				continue
			}
			s.gauge(c.descs.unhealthy, boolValue(peer.State == wireguard.Unhealthy), device, peer.Node)
			if peer.RTT > 0 {
				s.gauge(c.descs.roundTrip, peer.RTT.Seconds(), device, peer.Node)
			}
		}
	}
}

// collectCluster adds what there is to say of Kubernetes, if there is one.
func (c *planeCollector) collectCluster(s sender) {
	if c.daemon.cluster == nil {
		return
	}
	stats := c.daemon.cluster.Stats()
	s.gauge(c.descs.apiCurrent, boolValue(stats.Reachable))
	s.counter(c.descs.apiWrites, float64(stats.Writes))
	for reason, nodes := range stats.Problems {
		s.gauge(c.descs.nodeProblems, float64(nodes), reason)
	}
}

func (c *planeCollector) collectDevice(s sender, device wireguard.Status) {
	s.gauge(c.descs.peers, float64(len(device.Peers)))
	if device.Device == "" {
		return
	}
	s.gauge(c.descs.device, 1, device.Device, string(device.Backend))
	s.gauge(c.descs.mtu, float64(device.MTU))
	for _, peer := range device.Peers {
		if peer.Node == "" {
			continue // about to be removed, and nobody's
		}
		age := math.Inf(1)
		if !peer.LastHandshake.IsZero() {
			age = max(0, time.Since(peer.LastHandshake).Seconds())
		}
		s.gauge(c.descs.handshake, age, peer.Node)
		s.counter(c.descs.rx, float64(peer.RxBytes), peer.Node)
		s.counter(c.descs.tx, float64(peer.TxBytes), peer.Node)
	}
}

// sender makes metrics of values.
type sender struct{ into chan<- prometheus.Metric }

func (s sender) gauge(desc *prometheus.Desc, value float64, labels ...string) {
	s.into <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}

func (s sender) counter(desc *prometheus.Desc, value float64, labels ...string) {
	s.into <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
