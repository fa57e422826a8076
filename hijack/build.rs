//! Linker settings of the preloaded library.

fn main() {
    // An undefined symbol must fail here, not in the process that we are preloaded into.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
    // Our wrappers resolve each other inside the library, without the symbol search of the program.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
    // Every symbol is resolved at load time: lazy binding takes a lock in the middle of a wrapper.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,now");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libulpm_hijack.so");
}
