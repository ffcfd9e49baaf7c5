extern "C" __attribute__((visibility("default"))) int nm_abi_version() { return 0; }
