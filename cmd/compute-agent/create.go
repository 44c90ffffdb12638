package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/compute-agent/compute-agent/internal/near"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

const createHelp = `Build an instance on a host and start it, from flags or from a file.

The instance's UUID is printed when it runs, and nothing else, so that a script can keep it:

    id=$(compute-agent instance create --host node1 --name web1 --vcpus 2 --memory 2048 --disk image=/srv/debian.qcow2)

A disk is written as members of the specification: file, image or volume=PATH, and format, bus, size_gib,
boot_index, shared, read_only. A plain path is a file. A port: bridge, mac, binding (bridge, ovs, tap; default
bridge when a bridge is named), vlan, mtu, id. What is left out is made up: MAC addresses begin with 52:54:00.

A file is JSON or YAML and looks as ` + "`instance show -o yaml`" + ` prints it under spec; - reads standard input.
Flags win over the file.`

// creation are the flags of instance create.
type creation struct {
	host, file                    string
	name, kernel, initrd, cmdline string
	uuid, machine, firmware, cpu  string
	vcpus, memory                 int
	disks, ports, metadata        []string
	sameName                      bool
}

func (a *app) instanceCreate() *cobra.Command {
	var n creation
	c := &cobra.Command{
		Use: "create --host HOST", Short: "Build an instance on a host and start it", Long: createHelp, Args: cobra.NoArgs,
		Example: "  compute-agent instance create --host node1 --name web1 --vcpus 2 --memory 2048 --disk image=/srv/debian.qcow2,size_gib=20 --port bridge=br0\n" +
			"  compute-agent instance create --host node1 --name tiny --memory 128 --kernel /srv/vmlinuz --initrd /srv/initrd --cmdline console=ttyS0\n" +
			"  compute-agent instance create --host node1 --spec web1.yaml",
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&n.host, "host", "", "where it is built")
	f.StringVar(&n.file, "spec", "", "specification: a JSON or YAML file, or - for standard input")
	f.StringVar(&n.name, "name", "", "name (default: its UUID)")
	f.StringVar(&n.uuid, "uuid", "", "UUID (default: one is made)")
	f.BoolVar(&n.sameName, "same-name", false, "allow another instance of this name")
	f.IntVar(&n.vcpus, "vcpus", 1, "CPUs")
	f.IntVar(&n.memory, "memory", 512, "memory in MiB")
	f.StringVar(&n.cpu, "cpu", "", "host-model, host-passthrough, maximum, or the name of a model")
	f.StringVar(&n.machine, "machine", "", "machine type, e.g. pc-q35-7.2")
	f.StringVar(&n.firmware, "firmware", "", "bios or efi")
	f.StringVar(&n.kernel, "kernel", "", "boot this kernel of the host instead of a disk")
	f.StringVar(&n.initrd, "initrd", "", "with this initial RAM disk")
	f.StringVar(&n.cmdline, "cmdline", "", "and this command line")
	f.StringArrayVar(&n.disks, "disk", nil, "disk, e.g. image=/srv/debian.qcow2,size_gib=20 (may be repeated)")
	f.StringArrayVar(&n.ports, "port", nil, "network port, e.g. bridge=br0,mac=52:54:00:00:00:01 (may be repeated)")
	f.StringArrayVar(&n.metadata, "metadata", nil, "key=value (may be repeated)")
	a.must(c.MarkFlagRequired("host"))
	a.must(c.RegisterFlagCompletionFunc("host", a.completeHosts))
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error { return a.create(cmd, &n, w) }
	return c
}

func (a *app) create(cmd *cobra.Command, n *creation, w *waiting) error {
	spec, err := a.spec(cmd, n)
	if err != nil {
		return err
	}
	return a.with(cmd.Context(), func(ctx context.Context, s *session) (err error) {
		if err := n.unused(ctx, s, spec.Name); err != nil {
			return err
		}
		t, err := s.BuildAndRunInstance(ctx, n.host, spec)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.Close()) }()
		begun := time.Now()
		if w.none() {
			if !a.force {
				if err := t.Accepted(ctx); err != nil {
					return whileWaiting(ctx, err, t)
				}
			}
			_, _ = fmt.Fprintf(a.err, "Request %s %s\n", t.RequestID(), map[bool]string{true: "is stored", false: "is accepted"}[a.force])
			return a.show(map[string]string{"uuid": spec.UUID, "request_id": t.RequestID()}, func(w io.Writer) { _, _ = fmt.Fprintln(w, spec.UUID) })
		}
		if _, err := t.Wait(ctx); err != nil {
			return whileWaiting(ctx, err, t)
		}
		_, _ = fmt.Fprintf(a.err, "%s runs on %s after %s\n", spec.Name, n.host, short(time.Since(begun)))
		if a.output == outputTable {
			_, err = fmt.Fprintln(a.out, spec.UUID)
			return err
		}
		i, err := s.ShowInstance(ctx, spec.UUID)
		if err != nil {
			return err
		}
		return a.encode(a.out, i)
	})
}

// unused refuses a name that an instance has already: two of one name can't be told
// apart by it, and a create that is run again would make one more.
func (n *creation) unused(ctx context.Context, s *session, name string) error {
	if n.sameName || n.uuid != "" {
		return nil
	}
	i, err := s.FindInstance(ctx, name)
	switch {
	case err == nil:
		return fault.Newf(fault.Conflict, "", "instance "+name, "there is one of this name: %s on %s", i.UUID, i.Host).
			WithHint("choose another name; --same-name makes one more of it")
	case errors.Is(err, fault.NotFound):
		return nil
	default:
		return err
	}
}

// spec is the file, if there is one, with the flags over it.
func (a *app) spec(cmd *cobra.Command, n *creation) (instance.Spec, error) {
	var s instance.Spec
	if n.file != "" {
		if err := a.readSpec(n.file, &s); err != nil {
			return s, err
		}
	}
	given := func(name string) bool { return n.file == "" || cmd.Flags().Changed(name) }
	for name, field := range map[string]struct{ to, from *string }{
		"name": {&s.Name, &n.name}, "uuid": {&s.UUID, &n.uuid}, "machine": {&s.Machine, &n.machine}, "firmware": {&s.Firmware, &n.firmware},
		"kernel": {&s.Boot.Kernel, &n.kernel}, "initrd": {&s.Boot.Initrd, &n.initrd}, "cmdline": {&s.Boot.Cmdline, &n.cmdline},
	} {
		if given(name) {
			*field.to = *field.from
		}
	}
	if given("vcpus") {
		s.VCPUs = n.vcpus
	}
	if given("memory") {
		s.MemoryMiB = n.memory
	}
	if err := n.lists(&s); err != nil {
		return s, err
	}
	if s.UUID == "" {
		s.UUID = instance.NewUUID()
	}
	if s.Name == "" {
		s.Name = s.UUID
	}
	return s, s.Check()
}

// lists adds what may be repeated.
func (n *creation) lists(s *instance.Spec) error {
	if n.cpu != "" {
		s.CPU = cpu(n.cpu)
	}
	for _, text := range n.disks {
		d, err := disk(text)
		if err != nil {
			return err
		}
		s.Disks = append(s.Disks, d)
	}
	for _, text := range n.ports {
		p, err := port(text)
		if err != nil {
			return err
		}
		s.Ports = append(s.Ports, p)
	}
	for _, text := range n.metadata {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return usage("--metadata %q: write key=value", text)
		}
		if s.Metadata == nil {
			s.Metadata = map[string]string{}
		}
		s.Metadata[key] = value
	}
	return nil
}

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func cpu(text string) instance.CPU {
	switch text {
	case "host-model", "host-passthrough", "maximum":
		return instance.CPU{Mode: text}
	default:
		return instance.CPU{Mode: "custom", Model: text}
	}
}

// disk reads --disk: members of the specification, or a plain path.
func disk(text string) (instance.Disk, error) {
	if !strings.Contains(text, "=") {
		return instance.Disk{Source: instance.DiskSource{File: text}}, nil
	}
	var d instance.Disk
	return d, members("--disk", text, map[string]any{
		"file": &d.Source.File, "image": &d.Source.Image, "volume": &d.Source.Volume, "format": &d.Format, "bus": &d.Bus,
		"size_gib": &d.SizeGiB, "boot_index": &d.BootIndex, "shared": &d.Shared, "read_only": &d.ReadOnly,
	})
}

// port reads --port and makes up what it leaves out.
func port(text string) (instance.Port, error) {
	var p instance.Port
	err := members("--port", text, map[string]any{
		"id": &p.ID, "mac": &p.MAC, "mtu": &p.MTU, "binding": (*string)(&p.Binding), "bridge": &p.Bridge, "vlan": &p.VLAN, "wait_for_event": &p.WaitForEvent,
	})
	if err != nil {
		return p, err
	}
	if p.ID == "" {
		p.ID = instance.NewPortID()
	}
	if p.MAC == "" { // from the end of the id, which is random
		tail := strings.ReplaceAll(p.ID, "-", "")
		tail = tail[max(0, len(tail)-6):]
		if len(tail) < 6 {
			return p, usage("--port %q: an id that is not a UUID needs a mac too", text)
		}
		p.MAC = "52:54:00:" + tail[0:2] + ":" + tail[2:4] + ":" + tail[4:6]
	}
	if p.Binding == "" {
		p.Binding = instance.BindingTap
		if p.Bridge != "" {
			p.Binding = instance.BindingBridge
		}
	}
	return p, nil
}

// members reads a=b,c=d into the fields of those names; a name alone is true.
func members(flag, text string, fields map[string]any) error {
	for part := range strings.SplitSeq(text, ",") {
		name, value, hasValue := strings.Cut(part, "=")
		var err error
		switch to := fields[name].(type) {
		case *string:
			*to = value
		case *int:
			*to, err = strconv.Atoi(value)
		case *bool:
			*to = true
			if hasValue {
				*to, err = strconv.ParseBool(value)
			}
		default:
			names := slices.Sorted(maps.Keys(fields))
			return fault.Newf(fault.InvalidArgument, "", flag, "%q: there is no member %q", text, name).WithHint("%s", near.Hint(name, names))
		}
		if err != nil {
			return usage("%s %q: %s: %w", flag, text, name, err)
		}
	}
	return nil
}

// readSpec reads JSON or YAML strictly: a member that does not exist is a slip of the finger.
func (a *app) readSpec(path string, s *instance.Spec) error {
	raw, err := a.readInput(path)
	if err != nil {
		return err
	}
	var doc any
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return fault.WrapAs(fault.InvalidArgument, err, "", path)
	}
	if whole, ok := doc.(map[string]any); ok && whole["spec"] != nil { // as show prints it
		doc = whole["spec"]
	}
	clean, err := json.Marshal(doc)
	if err != nil {
		return fault.WrapAs(fault.InvalidArgument, err, "", path)
	}
	dec := json.NewDecoder(bytes.NewReader(clean))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil {
		return fault.New(fault.InvalidArgument, "", path, strings.TrimPrefix(err.Error(), "json: ")).
			WithHint("docs/rpc.md lists the members of a specification")
	}
	return nil
}

// readInput reads a file, or standard input for -.
func (a *app) readInput(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(a.in)
	}
	raw, err := os.ReadFile(path) //nolint:gosec // the user named it
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "", path, "there is no such file")
	}
	return raw, err
}
