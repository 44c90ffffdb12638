// Package vif wires the network ports of guests on this host: it makes each
// port's tap with its final name, MAC and MTU, puts it into its bridge, waits
// until it is ready, and removes it again. It is the only room that speaks
// netlink.
//
// A port's tap exists before the guest does and libvirt is told not to manage
// it, so that whoever wires the network can do so before the guest runs:
//
//	PLUG      tap made, silent: no IPv6 address, no router solicitation
//	READY     it exists, is in its bridge, is up; and whoever was to say
//	          "network-vif-plugged" has said so
//	ACTIVATE  the guest runs here: make sure that its link is up
//	UNPLUG    the tap goes; one that is gone already is success
//
// Every method is idempotent. Each tap carries a label in its interface alias
// (port and instance), so that a later run of the agent knows what is its own.
package vif
