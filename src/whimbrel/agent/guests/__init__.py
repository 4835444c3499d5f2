"""The guests of one host, under a hypervisor."""
