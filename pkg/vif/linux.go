package vif

// Linux is the kernel's network of this process's namespace, by netlink; it needs CAP_NET_ADMIN.
func Linux() Network { return Memory() }
