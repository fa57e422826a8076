//! The header in C and this crate are the same interface, to the byte and to the number.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use ulpm_plugin::{ABI, Event, Plugin, REQUIRED, Services, event};

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-pedantic", "-Werror"];

macro_rules! layout {
    ($rust:ident, $c:literal, $($field:ident),*) => {{
        let mut text = format!("{} {}\n", $c, size_of::<$rust>());
        $(let _ = writeln!(text, "{}.{} {}", $c, stringify!($field), offset_of!($rust, $field));)*
        (text, $c, vec![$(stringify!($field)),*])
    }};
}

#[test]
fn the_header_says_the_same_as_this_crate_in_c99_and_in_cpp17() {
    let structures = [
        layout!(
            Event,
            "ulpm_event",
            size,
            number,
            pid,
            child,
            deadline_ns,
            path,
            reason,
            reason_size
        ),
        layout!(
            Services,
            "ulpm_services",
            size,
            abi,
            log,
            restart_variable,
            set_variable,
            wish_checkpoint,
            set_section
        ),
        layout!(
            Plugin,
            "ulpm_plugin",
            size,
            abi,
            name,
            version,
            events,
            deadline_ms,
            flags,
            callback
        ),
    ];
    let mut wanted: String = structures.iter().map(|(text, ..)| text.as_str()).collect();
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"ulpm_plugin.h\"\nint main(void)\n{\n",
    );
    for (_, structure, fields) in &structures {
        let _ = writeln!(
            source,
            "    printf(\"{structure} %lu\\n\", (unsigned long)sizeof(struct {structure}));"
        );
        for field in fields {
            let _ = writeln!(
                source,
                "    printf(\"{structure}.{field} %lu\\n\", (unsigned long)offsetof(struct {structure}, {field}));"
            );
        }
    }
    let mut numbers =
        vec![("ULPM_PLUGIN_ABI".to_owned(), ABI), ("ULPM_PLUGIN_REQUIRED".into(), REQUIRED)];
    for number in 1..u32::try_from(event::COUNT).unwrap() {
        let name = event::name(number).to_str().unwrap();
        numbers.push((format!("ULPM_EVENT_{}", name.to_uppercase().replace('-', "_")), number));
    }
    for (name, number) in numbers {
        let _ = writeln!(wanted, "{name} {number}");
        let _ = writeln!(source, "    printf(\"{name} %lu\\n\", (unsigned long){name});");
    }
    source += "    return 0;\n}\n";
    let dir = std::env::temp_dir().join(format!("ulpm-header-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("header.c"), source).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include");
    for (compiler, language) in [("gcc", ["-std=c99", "-xc"]), ("g++", ["-std=c++17", "-xc++"])] {
        let program = dir.join(compiler);
        let mut command = Command::new(compiler);
        command.args(language).args(WARNINGS).arg("-I").arg(&include);
        let built = command.arg(dir.join("header.c")).arg("-o").arg(&program).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let said = Command::new(program).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), wanted, "{compiler}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}
