//! Logs every event. `ulpm_launch --plugin tell --plugin-log FILE PROGRAM`

use ulpm_plugin::event;

ulpm_plugin::plugin!(c"tell", c"1.0", event::ALL, |event, services| {
    services.log(event::name(event.number));
    0
});
