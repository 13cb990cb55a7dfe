package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// largestMTU is what the 16-bit length of an IPv4 packet can hold; smallestMTU
// is what every IPv4 host must take (RFC 791).
const smallestMTU, largestMTU = 576, 65535

// object is a JSON object whose values are decoded when they are asked for.
// Most keys of a configuration are not there, or other plugins' business, and
// preparing a struct for them costs more than all the rest of reading it.
type object map[string]json.RawMessage

// get decodes the value of key into its target, if there is one.
func (o object) get(key string, into any) error {
	raw, ok := o[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return types.NewError(types.ErrDecodingFailure, "decode "+key+" of the network configuration", err.Error())
	}
	return nil
}

// parseConf reads a configuration as far as all verbs do. What is wrong behind
// that is not DEL's business: no mistake may keep a pod from being removed.
func parseConf(stdin []byte) (conf daemonConf, rest object, err error) {
	if err := json.Unmarshal(stdin, &rest); err != nil {
		return conf, nil, types.NewError(types.ErrDecodingFailure, "decode network configuration", err.Error())
	}
	err = firstError(
		rest.get("cniVersion", &conf.cniVersion),
		rest.get("socket", &conf.socket),
		rest.get("stateDir", &conf.stateDir),
	)
	if err != nil {
		return conf, nil, err
	}
	return conf, rest, conf.complete()
}

// daemonConf says where overlayd is.
type daemonConf struct {
	cniVersion string // known beside an error, too, if it could be read
	socket     string // overlayd's
	stateDir   string // overlayd's; it holds the tombstones
}

func (c *daemonConf) complete() error {
	if c.stateDir == "" {
		c.stateDir = DefaultStateDir
	}
	if c.socket == "" {
		c.socket = shim.DefaultSocket
	}
	// A plugin's working directory is whatever the runtime's happens to be.
	if !filepath.IsAbs(c.socket) {
		return invalid("socket", c.socket, "is not an absolute path")
	}
	if !filepath.IsAbs(c.stateDir) {
		return invalid("stateDir", c.stateDir, "is not an absolute path")
	}
	return nil
}

// validAttachments returns what GC must keep. It is nil if the runtime named
// nothing, which is not the same as naming none.
func validAttachments(conf object) ([]shim.Attachment, error) {
	const key = "cni.dev/valid-attachments"
	var named []types.GCAttachment
	if err := conf.get(key, &named); err != nil || named == nil {
		return nil, err
	}
	valid := make([]shim.Attachment, 0, len(named))
	for _, a := range named {
		if a.ContainerID == "" || a.IfName == "" {
			// Half a key matches nothing, so the pod it means would be swept away.
			return nil, invalid(key, fmt.Sprint(a), "lacks containerID or ifname")
		}
		valid = append(valid, shim.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return valid, nil
}

// netConf is what ADD and CHECK read of a configuration.
type netConf struct {
	ips  []netip.Addr      // wanted; none: any
	mac  net.HardwareAddr  // wanted, or nil
	mtu  int               // wanted, or 0
	dns  *types.DNS        // to be passed on, also if it is empty; or nil
	told *shim.DNSSettings // what the runtime has the sandbox resolve names with, or nil
	pod  *shim.Pod         // or nil
	prev *types100.Result  // of the plugins before us, or of our ADD; may be nil

	network string // the configuration's name, which skel has checked
}

// parseNetConf reads and checks everything that ADD and CHECK use of a
// configuration. Wanted addresses come from runtimeConfig, else from args.cni,
// else from CNI_ARGS (CONVENTIONS.md of the CNI repository). goos is the system
// that the sandbox is of.
func parseNetConf(goos, cniVersion string, conf object, args podArgs) (netConf, error) {
	c := netConf{pod: args.pod()}
	var runtime struct {
		wishes
		DNS json.RawMessage `json:"dns"`
	}
	var fixed struct {
		CNI wishes `json:"cni"`
	}
	var prev map[string]any
	err := firstError(
		refuseForeign(conf),
		conf.get("name", &c.network),
		conf.get("mtu", &c.mtu),
		conf.get("dns", &c.dns),
		conf.get("args", &fixed),
		conf.get("runtimeConfig", &runtime),
		conf.get("prevResult", &prev),
	)
	if err != nil {
		return c, err
	}
	if c.mtu != 0 && (c.mtu < smallestMTU || c.mtu > largestMTU) {
		return c, invalid("mtu", fmt.Sprint(c.mtu), fmt.Sprintf("is not within %d to %d", smallestMTU, largestMTU))
	}
	if err := firstError(c.want(args.wishes()), c.want(fixed.CNI), c.want(runtime.wishes), c.resolve(goos, runtime.DNS)); err != nil {
		return c, err
	}
	if prev != nil {
		if c.prev, err = parsePrevResult(cniVersion, prev); err != nil {
			return c, invalid("prevResult", "", err.Error())
		}
	}
	return c, nil
}

// refuseForeign refuses what other main plugins do and this one cannot, rather
// than not doing it unnoticed.
func refuseForeign(conf object) error {
	var ipam types.IPAM
	var ipMasq *bool
	if err := firstError(conf.get("ipam", &ipam), conf.get("ipMasq", &ipMasq)); err != nil {
		return err
	}
	if !ipam.IsEmpty() {
		return unsupportedKey("ipam.type", ipam.Type, "overlayd hands out the addresses")
	}
	if ipMasq != nil {
		return unsupportedKey("ipMasq", fmt.Sprint(*ipMasq), "overlayd's configuration decides for the whole node")
	}
	return nil
}

// wishes are the addresses that somebody wants for an attachment.
type wishes struct {
	IPs []string `json:"ips"`
	MAC string   `json:"mac"`
}

// want takes what w names and leaves the rest.
func (c *netConf) want(w wishes) error {
	if len(w.IPs) > 0 {
		c.ips = make([]netip.Addr, 0, len(w.IPs))
	}
	for _, text := range w.IPs {
		addr, err := parseAddr(text)
		if err != nil {
			return invalid("ips", text, "is not an IP address")
		}
		c.ips = append(c.ips, addr)
	}
	if w.MAC != "" {
		const multicast = 1
		mac, err := net.ParseMAC(w.MAC)
		if err != nil || len(mac) != 6 || mac[0]&multicast != 0 || [6]byte(mac) == [6]byte{} {
			return invalid("mac", w.MAC, "is not a unicast Ethernet address")
		}
		c.mac = mac
	}
	return nil
}

// runtimeDNS is the capability "dns" (CONVENTIONS.md of the CNI repository).
type runtimeDNS struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
}

// resolve takes what the sandbox resolves names with, which only Windows has from
// us: elsewhere the runtime sees to it, and no mistake in it keeps a pod from
// starting.
func (c *netConf) resolve(goos string, raw json.RawMessage) error {
	if goos != "windows" || len(raw) == 0 {
		return nil
	}
	var wanted *runtimeDNS
	if err := (object{"dns": raw}).get("dns", &wanted); err != nil || wanted == nil {
		return err
	}
	c.told = &shim.DNSSettings{Search: wanted.Searches}
	for _, text := range wanted.Servers {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return invalid("dns", text, "is not the address of a server")
		}
		c.told.Nameservers = append(c.told.Nameservers, addr.Unmap())
	}
	return nil
}

// parseAddr takes an address with or without a prefix length, both of which
// runtimes send. The length says nothing here: a pod's address stands alone.
func parseAddr(text string) (netip.Addr, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Addr().Unmap(), nil
	}
	addr, err := netip.ParseAddr(text)
	if err == nil && addr.Zone() != "" {
		err = fmt.Errorf("address %s has a zone", text)
	}
	return addr.Unmap(), err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
